/* Descriptors that the holder keeps for the next pager (docs/internals/holder-protocol.md). */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Connect to the holder's socket. -1 with errno. Requests wait for at most five seconds. */
int keep_connect(const char *path);

/* Keep a descriptor, in place of an older one of that name. */
bool keep_put(int holder, const char *name, int fd);

/* Returns the descriptor, or -1 where there is none. */
int keep_get(int holder, const char *name);
void keep_drop(int holder, const char *name);

/* Call `each` with every name. */
bool keep_names(int holder, void (*each)(const char *name, void *user), void *user);
