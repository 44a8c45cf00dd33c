#include "pack.h"

#include <zstd.h>

#include "seal.h"

enum { LEVEL = 1 };

uint32_t pack_page(struct pack *pack, const void *plain, void *packed)
{
	size_t length;

	if (!pack->compressor)
		pack->compressor = ZSTD_createCCtx();
	if (!pack->compressor)
		return 0;
	length = ZSTD_compressCCtx(pack->compressor, packed, PACK_MAX, plain, PAGE_SIZE, LEVEL);
	return ZSTD_isError(length) ? 0 : (uint32_t)length;
}

bool unpack_page(struct pack *pack, const void *packed, uint32_t length, void *plain)
{
	if (!pack->decompressor)
		pack->decompressor = ZSTD_createDCtx();
	return pack->decompressor &&
	       ZSTD_decompressDCtx(pack->decompressor, plain, PAGE_SIZE, packed, length) == PAGE_SIZE;
}

void pack_close(struct pack *pack)
{
	ZSTD_freeCCtx(pack->compressor);
	ZSTD_freeDCtx(pack->decompressor);
	pack->compressor = pack->decompressor = NULL;
}
