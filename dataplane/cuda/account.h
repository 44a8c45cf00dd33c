/* What the clients of one lease have together, in memory that the processes of their servers share: the lease's limits
 * hold for all of them, and what a client had is given back when its process ends, however it does. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum { CLIENTS_MAX = 64, CONTEXTS_MAX = 64, UNSUPPORTED_MAX = 32, UNSUPPORTED_NAME = 64 };

struct client {
	pid_t pid; /* 0: free */
	_Atomic uint64_t memory, contexts;
	uint64_t calls, bytes_in, bytes_out, failures;
	unsigned unsupported;
	struct {
		char name[UNSUPPORTED_NAME];
		uint64_t count;
	} missed[UNSUPPORTED_MAX];
};

struct account {
	uint64_t limit; /* bytes of the GPU's memory */
	_Atomic uint64_t memory, contexts;
	struct client clients[CLIENTS_MAX];
};

struct account *account_new(uint64_t limit);

/* Take bytes and contexts for a client; false where the lease has no more. */
bool account_take(struct account *account, struct client *client, uint64_t memory, uint64_t contexts);
void account_give(struct account *account, struct client *client, uint64_t memory, uint64_t contexts);

/* Count a call that is not supported; the first UNSUPPORTED_MAX names are kept. */
void account_miss(struct client *client, const char *name);

/* Give back all that a client had, say what it did, and free its place. */
void account_close(struct account *account, struct client *client);
