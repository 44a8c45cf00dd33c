/* Descriptors that clients leave with the holder, by name, so that they outlive the client. */
#pragma once

#include <sys/queue.h>

#include "bounds.h"
#include "message.h"

struct kept {
	TAILQ_ENTRY(kept) link;
	char name[LABEL_MAX + 1];
	int fd;
};

struct store {
	TAILQ_HEAD(, kept) list;
	unsigned count;
};

void store_init(struct store *store);
struct kept *store_find(struct store *store, const char *name);

/* Take `fd`, whatever comes of it. */
bool store_keep(struct store *store, const char *name, int fd, struct refusal *why);
void store_drop(struct store *store, struct kept *kept);
void store_clear(struct store *store);
