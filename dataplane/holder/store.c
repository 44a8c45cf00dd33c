#include "store.h"

#include <string.h>

#include "cleanup.h"

void store_init(struct store *store)
{
	TAILQ_INIT(&store->list);
	store->count = 0;
}

struct kept *store_find(struct store *store, const char *name)
{
	struct kept *kept;

	TAILQ_FOREACH (kept, &store->list, link)
		if (!strcmp(kept->name, name))
			return kept;
	return NULL;
}

bool store_keep(struct store *store, const char *name, int fd, struct refusal *why)
{
	AUTO_CLOSE int owned = fd;
	struct kept *kept;

	if (store_find(store, name))
		return refuse(why, EEXIST, "descriptor %s is kept already", name);
	if (store->count == KEPT_MAX)
		return refuse(why, ENOSPC, "%d descriptors are kept already", KEPT_MAX);
	kept = calloc(1, sizeof *kept);
	if (!kept)
		return refuse(why, ENOMEM, "out of memory");
	strncpy(kept->name, name, LABEL_MAX);
	kept->fd = take_fd(&owned);
	TAILQ_INSERT_TAIL(&store->list, kept, link);
	store->count++;
	return true;
}

void store_drop(struct store *store, struct kept *kept)
{
	TAILQ_REMOVE(&store->list, kept, link);
	store->count--;
	close(kept->fd);
	free(kept);
}

void store_clear(struct store *store)
{
	struct kept *kept;

	while ((kept = TAILQ_FIRST(&store->list)))
		store_drop(store, kept);
}
