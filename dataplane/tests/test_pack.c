/* Packed pages: what pays comes back as it was, what does not is told, and nothing but a whole page is ever made. */
#include "pack.h"

#include "check.h"
#include "seal.h"

static uint8_t plain[PAGE_SIZE], packed[PACK_MAX + 1], back[PAGE_SIZE + 1];

static uint32_t random32(void)
{
	static uint64_t seed = 1;

	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint32_t)(seed >> 32);
}

int main(void)
{
	struct pack pack = {0}, other = {0};
	uint32_t length, kinds[2] = {0};

	/* From text to noise: the part that is random grows. */
	for (uint32_t noise = 0; noise <= PAGE_SIZE; noise += 64) {
		for (uint32_t i = 0; i < PAGE_SIZE; i++)
			plain[i] = i < noise ? (uint8_t)random32() : (uint8_t)("pages of a guest "[i % 17]);
		packed[PACK_MAX] = back[PAGE_SIZE] = 0xee;
		length = pack_page(&pack, plain, packed);
		CHECK(length <= PACK_MAX && packed[PACK_MAX] == 0xee);
		kinds[length != 0]++;
		if (!length)
			continue;
		/* By another thread, which has packed nothing. */
		CHECK(unpack_page(&other, packed, length, back) && !memcmp(back, plain, PAGE_SIZE));
		CHECK(back[PAGE_SIZE] == 0xee);
		for (uint32_t less = 1; less < length; less += 7)
			CHECK(!unpack_page(&other, packed, length - less, back));
		/* Nobody but the pager itself can have written them, and still nothing is written beyond the page. */
		packed[random32() % length] ^= (uint8_t)(1 << random32() % 8);
		unpack_page(&other, packed, length, back);
		CHECK(back[PAGE_SIZE] == 0xee);
	}
	CHECK(kinds[0] > 4 && kinds[1] > 32);
	CHECK(!unpack_page(&other, packed, 0, back));
	pack_close(&pack);
	pack_close(&other);
	return 0;
}
