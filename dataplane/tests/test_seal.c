/* Seals: what was sealed comes back; anything else is told apart. */
#include "seal.h"

#include "check.h"

static uint8_t plain[PAGE_SIZE], sealed[PAGE_SIZE + SEAL_TAG_SIZE], copy[PAGE_SIZE + SEAL_TAG_SIZE];

int main(void)
{
	uint8_t key[SEAL_KEY_SIZE] = {1, 2, 3}, other_key[SEAL_KEY_SIZE] = {1, 2, 4};
	struct seal seal, other;
	struct seal_record record, older, wrong;

	CHECK(seal_open(&seal, key) && seal_open(&other, other_key));
	CHECK(page_is_zero(plain));
	for (int i = 0; i < PAGE_SIZE; i++)
		plain[i] = (uint8_t)(i * 7 + 1);
	CHECK(!page_is_zero(plain));
	memset(copy, 0, sizeof copy);
	copy[PAGE_SIZE - 1] = 1;
	CHECK(!page_is_zero(copy));

	CHECK(seal_page(&seal, 5, 77, plain, sealed, &older));
	CHECK(seal_page(&seal, 5, 78, plain, sealed, &record));
	CHECK(memcmp(record.tag, older.tag, SEAL_TAG_SIZE));
	CHECK(memcmp(sealed, plain, PAGE_SIZE));
	memset(sealed + PAGE_SIZE, 0xee, SEAL_TAG_SIZE); /* the neighbour's bytes stay as they are */
	memcpy(copy, sealed, sizeof copy);
	CHECK(seal_unseal(&seal, 5, &record, copy));
	CHECK(!memcmp(copy, plain, PAGE_SIZE));
	CHECK(!memcmp(copy + PAGE_SIZE, sealed + PAGE_SIZE, SEAL_TAG_SIZE));

#define REFUSED(seal_, page_, record_)                                                                                 \
	do {                                                                                                           \
		memcpy(copy, sealed, sizeof copy);                                                                     \
		CHECK(!seal_unseal(seal_, page_, record_, copy));                                                      \
	} while (0)
	REFUSED(&seal, 6, &record);  /* another page's place */
	REFUSED(&seal, 5, &older);   /* a store that gives back an older version */
	REFUSED(&other, 5, &record); /* another key */
	wrong = record;
	wrong.version++;
	REFUSED(&seal, 5, &wrong);
	for (int bit = 0; bit < PAGE_SIZE * 8; bit += 997) {
		sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
		REFUSED(&seal, 5, &record);
		sealed[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	memset(sealed, 0, PAGE_SIZE); /* a store that came back empty */
	REFUSED(&seal, 5, &record);
	seal_close(&seal);
	seal_close(&other);
	return 0;
}
