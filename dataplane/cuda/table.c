#include "table.h"

#include <stdlib.h>
#include <string.h>

void table_free(struct table *table)
{
	free(table->entries);
	free(table->ranges);
	*table = (struct table){.entries = NULL};
}

bool table_has_room(const struct table *table)
{
	return table->free || table->count < HANDLES_MAX;
}

static struct entry *new_entry(struct table *table)
{
	if (table->free)
		for (unsigned i = 0; i < table->count; i++)
			if (table->entries[i].type == HANDLE_NONE) {
				table->free--;
				return &table->entries[i];
			}
	if (table->count == HANDLES_MAX)
		return NULL;
	if (!(table->count & (table->count - 1))) {
		size_t size = table->count ? 2 * (size_t)table->count : 1;
		struct entry *grown = realloc(table->entries, size * sizeof *grown);

		if (!grown)
			return NULL;
		table->entries = grown;
	}
	table->entries[table->count] = (struct entry){.type = HANDLE_NONE};
	return &table->entries[table->count++];
}

static uint64_t handle_of(const struct table *table, const struct entry *entry)
{
	return handle_make(entry->type, (unsigned)(entry - table->entries), entry->use);
}

uint64_t table_add(struct table *table, enum handle_type type, uint64_t real, uint64_t under)
{
	struct entry *entry;

	for (unsigned i = 0; i < table->count; i++)
		if (table->entries[i].type == type && table->entries[i].real == real)
			return handle_of(table, &table->entries[i]);
	entry = new_entry(table);
	if (!entry)
		return 0;
	*entry = (struct entry){.type = type, .use = entry->use, .real = real, .under = under};
	return handle_of(table, entry);
}

struct entry *table_find(struct table *table, uint64_t handle)
{
	uint64_t index = (handle & ((1U << HANDLE_INDEX_BITS) - 1)) - 1;

	if (index >= table->count || table->entries[index].type == HANDLE_NONE ||
	    handle_of(table, &table->entries[index]) != handle)
		return NULL;
	return &table->entries[index];
}

uint64_t table_drop(struct table *table, uint64_t handle)
{
	struct entry *entry = table_find(table, handle);
	uint64_t freed = 0;
	size_t kept = 0;

	if (!entry)
		return 0;
	entry->type = HANDLE_NONE;
	entry->use = (entry->use + 1) & 0xffff;
	table->free++;
	for (size_t i = 0; i < table->ranges_count; i++) {
		if (table->ranges[i].under == handle)
			freed += table->ranges[i].counted ? table->ranges[i].size : 0;
		else
			table->ranges[kept++] = table->ranges[i];
	}
	table->ranges_count = kept;
	/* A thing under it has things under it in turn: a context's module, the module's functions; it goes no deeper. */
	for (unsigned i = 0; i < table->count; i++)
		if (table->entries[i].type != HANDLE_NONE && table->entries[i].under == handle)
			freed += table_drop(table, handle_of(table, &table->entries[i]));
	return freed;
}

/* Where the first range lies that ends beyond `at`. */
static size_t place(const struct table *table, uint64_t at)
{
	size_t low = 0, high = table->ranges_count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (table->ranges[middle].base + table->ranges[middle].size <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool table_add_range(struct table *table, struct range range)
{
	size_t at = place(table, range.base);

	if (!range.size || range.base + range.size < range.base || table->ranges_count == RANGES_MAX ||
	    (at < table->ranges_count && table->ranges[at].base < range.base + range.size))
		return false;
	if (table->ranges_count == table->ranges_size) {
		size_t size = table->ranges_size ? 2 * table->ranges_size : 64;
		struct range *grown = realloc(table->ranges, size * sizeof *grown);

		if (!grown)
			return false;
		table->ranges = grown;
		table->ranges_size = size;
	}
	memmove(table->ranges + at + 1, table->ranges + at, (table->ranges_count - at) * sizeof range);
	table->ranges[at] = range;
	table->ranges_count++;
	return true;
}

struct range *table_range(struct table *table, uint64_t at, uint64_t size)
{
	size_t index = place(table, at);
	struct range *range = index < table->ranges_count ? &table->ranges[index] : NULL;

	if (!range || at < range->base || size > range->size - (at - range->base))
		return NULL;
	return range;
}

void table_drop_range(struct table *table, struct range *range)
{
	size_t index = (size_t)(range - table->ranges);

	table->ranges_count--;
	memmove(range, range + 1, (table->ranges_count - index) * sizeof *range);
}
