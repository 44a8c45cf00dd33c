/* Seals: what was sealed comes back; anything else is told apart. */
#include "seal.h"

#include "check.h"
#include "wide.h"

static uint8_t plain[PAGE_SIZE], sealed[PAGE_SIZE + SEAL_TAG_SIZE], copy[PAGE_SIZE + SEAL_TAG_SIZE];

static uint64_t random_state = 88172645463325252ULL;

static void fill_random(uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		random_state ^= random_state << 13;
		random_state ^= random_state >> 7;
		random_state ^= random_state << 17;
		bytes[i] = (uint8_t)(random_state >> 24);
	}
}

/* Where the processor has the wide instructions: the same bytes and tags as GnuTLS, whatever the length, nothing beyond. */
static void test_wide(void)
{
	enum { LONGEST = PAGE_SIZE + 300, ROOM = LONGEST + SEAL_TAG_SIZE };
	static uint8_t text[LONGEST], expected[ROOM], made[ROOM];

	for (int round = 0; round < 2000; round++) {
		uint8_t key[WIDE_KEY], nonce[WIDE_NONCE], place[WIDE_PLACE], tag[WIDE_TAG];
		size_t length = round < 600 ? (size_t)round : round % 2 ? PAGE_SIZE : random_state % LONGEST, room = ROOM;
		gnutls_datum_t datum = {key, sizeof key};
		gnutls_aead_cipher_hd_t cipher;
		struct wide *wide;

		fill_random(key, sizeof key);
		fill_random(nonce, sizeof nonce);
		fill_random(place, sizeof place);
		fill_random(text, length);
		wide = wide_open(key);
		if (!wide)
			return;
		CHECK(!gnutls_aead_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_GCM, &datum));
		CHECK(!gnutls_aead_cipher_encrypt(cipher, nonce, sizeof nonce, place, sizeof place, sizeof tag, text,
						  length, expected, &room));
		memset(made, 0xaa, sizeof made);
		wide_crypt(wide, nonce, place, text, made, length, true, tag);
		CHECK(!memcmp(made, expected, length) && !memcmp(tag, expected + length, sizeof tag));
		CHECK(made[length] == 0xaa);
		memset(tag, 0, sizeof tag);
		wide_crypt(wide, nonce, place, made, made, length, false, tag);
		CHECK(!memcmp(made, text, length) && !memcmp(tag, expected + length, sizeof tag));
		gnutls_aead_cipher_deinit(cipher);
		wide_close(wide);
	}
}

static void without_wide(struct seal *seal)
{
	wide_close(seal->wide);
	seal->wide = NULL;
}

/* `wide`: as the processor can; otherwise what GnuTLS does. */
static void test_seals(bool wide)
{
	uint8_t key[SEAL_KEY_SIZE] = {1, 2, 3}, other_key[SEAL_KEY_SIZE] = {1, 2, 4};
	struct seal seal, other;
	struct seal_record record, older, wrong;

	CHECK(seal_open(&seal, key) && seal_open(&other, other_key));
	if (!wide) {
		without_wide(&seal);
		without_wide(&other);
	}
	memset(plain, 0, sizeof plain);
	CHECK(page_is_zero(plain));
	for (int i = 0; i < PAGE_SIZE; i++)
		plain[i] = (uint8_t)(i * 7 + 1);
	CHECK(!page_is_zero(plain));
	memset(copy, 0, sizeof copy);
	copy[PAGE_SIZE - 1] = 1;
	CHECK(!page_is_zero(copy));

	CHECK(seal_page(&seal, 5, 77, plain, PAGE_SIZE, sealed, &older));
	CHECK(seal_page(&seal, 5, 78, plain, PAGE_SIZE, sealed, &record));
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

	/* What is shorter than a page: nothing beyond it is touched or believed, and no other length opens. */
	for (uint32_t length = 1; length < PAGE_SIZE; length += 409) {
		memset(sealed, 0xee, sizeof sealed);
		CHECK(seal_page(&seal, 9, 100 + length, plain, length, sealed, &record));
		CHECK(seal_length(&record) == length && record.version == 100 + length);
		memset(sealed + length, 0xee, SEAL_TAG_SIZE);
		memcpy(copy, sealed, sizeof copy);
		CHECK(seal_unseal(&seal, 9, &record, copy));
		CHECK(!memcmp(copy, plain, length) && !memcmp(copy + length, sealed + length, sizeof copy - length));
		wrong = record;
		wrong.saved++;
		if (length > 1)
			REFUSED(&seal, 9, &wrong);
		wrong.saved = 0;
		REFUSED(&seal, 9, &wrong);
	}
	CHECK(sizeof record == 24);
	seal_close(&seal);
	seal_close(&other);
}

/* What one of them sealed the other opens. */
static void test_both(void)
{
	uint8_t key[SEAL_KEY_SIZE] = {9};
	struct seal seal, narrow;
	struct seal_record record;

	CHECK(seal_open(&seal, key) && seal_open(&narrow, key));
	without_wide(&narrow);
	fill_random(plain, sizeof plain);
	CHECK(seal_page(&seal, 1ULL << 40, 3, plain, PAGE_SIZE, sealed, &record));
	CHECK(seal_unseal(&narrow, 1ULL << 40, &record, sealed) && !memcmp(sealed, plain, PAGE_SIZE));
	CHECK(seal_page(&narrow, 7, 4, plain, PAGE_SIZE, sealed, &record));
	CHECK(seal_unseal(&seal, 7, &record, sealed) && !memcmp(sealed, plain, PAGE_SIZE));
	seal_close(&seal);
	seal_close(&narrow);
}

int main(void)
{
	test_seals(true);
	test_seals(false);
	test_both();
	test_wide();
	return 0;
}
