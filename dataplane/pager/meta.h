/* What must outlive the pager, for each region: a memfd that the holder keeps, mapped by every pager that comes.
 *
 * The records of the seals are here, and the key, so a pager that is killed loses nothing: a page is either resident in
 * the region's file, and then is taken for modified, or home has the bytes that its record proves. A record is only
 * written while its page is resident or being discarded, so one that was half written does not matter.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "seal.h"

enum { META_VERSION = 3, META_STORES = 2, META_RECORDS = 8192, REGION_ID_MAX = 64 };

#define META_MAGIC 0x7265676170636d76ULL /* "vmcpager" */

/* Version 2 had pages of full length only; what it wrote reads the same. */
enum { META_VERSION_OLDEST = 2 };

/* A lender's server (NBD over TLS-PSK). An empty `address` is no store. */
struct meta_store {
	char address[256];
	char export[160];
	char identity[64];
	char psk_file[256];
	uint32_t port;
	uint32_t serial; /* of the description: raised by every change */
};

struct meta {
	uint64_t magic;
	uint32_t version;
	uint32_t stores_used;
	uint64_t pages;
	uint8_t key[SEAL_KEY_SIZE];
	_Atomic uint64_t seals; /* the last version that was used */
	/* Where QEMU has it mapped; `length` 0: nowhere. The userfaultfd is with the holder. */
	uint64_t base, length;
	uint64_t budget; /* pages, of the whole pager */
	char id[REGION_ID_MAX + 1];
	struct meta_store stores[META_STORES];
	_Atomic uint64_t behind_count[META_STORES];
	uint32_t home; /* it comes here, and stays */
	/* The serial of a store that misses every page, while not all of them are noted yet. */
	_Atomic uint32_t marking[META_STORES];
	uint32_t poison; /* lost pages are marked as broken */
	_Atomic uint64_t poisoned;
	uint32_t pack; /* pages are packed before they are sealed */
};

_Static_assert(sizeof(struct meta) <= META_RECORDS, "the header has its place");

static inline uint64_t meta_size(uint64_t pages)
{
	uint64_t bitmap = (pages + 63) / 64 * 8;

	return META_RECORDS + pages * sizeof(struct seal_record) + (META_STORES + 1) * bitmap;
}

static inline struct seal_record *meta_records(struct meta *meta)
{
	return (struct seal_record *)((char *)meta + META_RECORDS);
}

/* A store misses every page, but not all of them are noted yet. */
static inline bool meta_marking(const struct meta *meta, unsigned store)
{
	return meta->marking[store] && meta->marking[store] == meta->stores[store].serial;
}

/* One bit for each page: the store does not have the version of the record. */
static inline uint64_t *meta_behind(struct meta *meta, unsigned store)
{
	return (uint64_t *)(meta_records(meta) + meta->pages) + store * ((meta->pages + 63) / 64);
}

/* One bit for each page: it is, or may be, marked as broken in QEMU's page tables. */
static inline uint64_t *meta_poisoned(struct meta *meta)
{
	return meta_behind(meta, META_STORES);
}
