/* What a client may name: its handles, and the device memory that it has. It never gets to pass a pointer of the
 * lender's process to the driver. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

enum { HANDLES_MAX = 65536, RANGES_MAX = 262144 };

struct entry {
	enum handle_type type; /* HANDLE_NONE: free */
	unsigned use;
	uint64_t real;
	uint64_t under; /* it ends with this handle; 0: with nothing */
	int late;	/* of a context: the failure of an asynchronous call that was not told yet */
};

struct range {
	uint64_t base, size;
	uint64_t under; /* the context or module that it ends with */
	bool counted;	/* it was allocated: the lease's limit is for it */
};

struct table {
	struct entry *entries;
	unsigned count, free; /* entries that were ever used, and of them the free ones */
	struct range *ranges; /* sorted, without overlaps */
	size_t ranges_count, ranges_size;
};

void table_free(struct table *table);
bool table_has_room(const struct table *table);

/* Returns the handle of a driver's object: the one it has already, or a new one; 0 without memory. */
uint64_t table_add(struct table *table, enum handle_type type, uint64_t real, uint64_t under);

/* The entry of a handle, or NULL. */
struct entry *table_find(struct table *table, uint64_t handle);

/* Forget a handle and all that ends with it. Returns the bytes of device memory that ended with it, counted ones. */
uint64_t table_drop(struct table *table, uint64_t handle);

bool table_add_range(struct table *table, struct range range);

/* The range that holds `size` bytes from `at` on, or NULL. */
struct range *table_range(struct table *table, uint64_t at, uint64_t size);
void table_drop_range(struct table *table, struct range *range);
