#include "account.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

struct account *account_new(uint64_t limit)
{
	struct account *account =
		mmap(NULL, sizeof *account, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (account == MAP_FAILED)
		return NULL;
	account->limit = limit;
	return account;
}

static bool take(_Atomic uint64_t *total, uint64_t more, uint64_t limit)
{
	uint64_t now = atomic_load(total);

	do {
		if (more > limit || now > limit - more)
			return false;
	} while (!atomic_compare_exchange_weak(total, &now, now + more));
	return true;
}

bool account_take(struct account *account, struct client *client, uint64_t memory, uint64_t contexts)
{
	if (!take(&account->memory, memory, account->limit))
		return false;
	if (!take(&account->contexts, contexts, CONTEXTS_MAX)) {
		atomic_fetch_sub(&account->memory, memory);
		return false;
	}
	atomic_fetch_add(&client->memory, memory);
	atomic_fetch_add(&client->contexts, contexts);
	return true;
}

void account_give(struct account *account, struct client *client, uint64_t memory, uint64_t contexts)
{
	atomic_fetch_sub(&client->memory, memory);
	atomic_fetch_sub(&client->contexts, contexts);
	atomic_fetch_sub(&account->memory, memory);
	atomic_fetch_sub(&account->contexts, contexts);
}

void account_miss(struct client *client, const char *name)
{
	unsigned i = 0;

	while (i < client->unsupported && strncmp(client->missed[i].name, name, UNSUPPORTED_NAME - 1))
		i++;
	if (i == UNSUPPORTED_MAX)
		return;
	if (i == client->unsupported) {
		snprintf(client->missed[i].name, UNSUPPORTED_NAME, "%s", name);
		client->missed[i].count = 0;
		client->unsupported++;
	}
	client->missed[i].count++;
}

void account_close(struct account *account, struct client *client)
{
	fprintf(stderr, "vmcoal-cuda: a client ended: %" PRIu64 " calls, %" PRIu64 " failed, %" PRIu64 " bytes in, %" PRIu64 " out",
		client->calls, client->failures, client->bytes_in, client->bytes_out);
	for (unsigned i = 0; i < client->unsupported && i < UNSUPPORTED_MAX; i++)
		fprintf(stderr, "%s%.*s %" PRIu64, i ? ", " : "; not supported: ", UNSUPPORTED_NAME, client->missed[i].name,
			client->missed[i].count);
	fputc('\n', stderr);
	account_give(account, client, atomic_load(&client->memory), atomic_load(&client->contexts));
	memset(client, 0, sizeof *client);
}
