/* Pages made smaller before they are sealed, where the link is slow: zstd at its quickest level (RFC 8878).
 *
 * The length is part of what the borrower keeps of a page (seal.h), so nothing that a store says is ever unpacked.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A page that does not become this small is sent as it is. */
enum { PACK_MAX = 3072 };

/* What one thread needs for it; made at the first use, 170 KB. */
struct pack {
	void *compressor, *decompressor;
};

/* Pack a page into `packed`, which has PACK_MAX bytes. Returns how many are used, 0 where it does not pay. */
uint32_t pack_page(struct pack *pack, const void *plain, void *packed);

/* False: these are not the `length` bytes of a page. `plain` is then anything. */
bool unpack_page(struct pack *pack, const void *packed, uint32_t length, void *plain);

void pack_close(struct pack *pack);
