#include "seal.h"

#include <endian.h>
#include <string.h>

#include "wide.h"

/* What is authenticated besides the bytes: the page's number and what it is shorter by. */
static uint64_t place_of(uint64_t page, uint32_t length)
{
	return htole64(page | (uint64_t)(PAGE_SIZE - length) << 48);
}

struct nonce {
	uint32_t zero;
	uint64_t version;
} __attribute__((packed));

bool seal_open(struct seal *seal, const uint8_t key[SEAL_KEY_SIZE])
{
	gnutls_datum_t datum = {(unsigned char *)key, SEAL_KEY_SIZE};

	seal->wide = wide_open(key);
	return gnutls_aead_cipher_init(&seal->cipher, GNUTLS_CIPHER_AES_256_GCM, &datum) == 0;
}

void seal_close(struct seal *seal)
{
	wide_close(seal->wide);
	seal->wide = NULL;
	if (seal->cipher)
		gnutls_aead_cipher_deinit(seal->cipher);
	seal->cipher = NULL;
}

bool seal_page(struct seal *seal, uint64_t page, uint64_t version, const void *plain, uint32_t length, void *sealed,
	       struct seal_record *record)
{
	struct nonce nonce = {0, htole64(version)};
	uint64_t place = place_of(page, length);
	size_t size = length + SEAL_TAG_SIZE;

	record->version = version;
	record->saved = PAGE_SIZE - length;
	if (seal->wide) {
		wide_crypt(seal->wide, (const void *)&nonce, (const void *)&place, plain, sealed, length, true, record->tag);
		return true;
	}
	if (gnutls_aead_cipher_encrypt(seal->cipher, &nonce, sizeof nonce, &place, sizeof place, SEAL_TAG_SIZE, plain,
				       length, sealed, &size) < 0)
		return false;
	memcpy(record->tag, (char *)sealed + length, SEAL_TAG_SIZE);
	return true;
}

bool seal_unseal(struct seal *seal, uint64_t page, const struct seal_record *record, void *sealed)
{
	struct nonce nonce = {0, htole64(record->version)};
	uint32_t sealed_length = seal_length(record);
	uint64_t place = place_of(page, sealed_length);
	uint8_t *behind = (uint8_t *)sealed + sealed_length, saved[SEAL_TAG_SIZE];
	size_t length = sealed_length;
	int failed;

	if (seal->wide) {
		wide_crypt(seal->wide, (const void *)&nonce, (const void *)&place, sealed, sealed, length, false, saved);
		return !gnutls_memcmp(saved, record->tag, SEAL_TAG_SIZE);
	}
	memcpy(saved, behind, sizeof saved);
	memcpy(behind, record->tag, SEAL_TAG_SIZE);
	failed = gnutls_aead_cipher_decrypt(seal->cipher, &nonce, sizeof nonce, &place, sizeof place, SEAL_TAG_SIZE,
					    sealed, sealed_length + SEAL_TAG_SIZE, sealed, &length);
	memcpy(behind, saved, sizeof saved);
	return !failed && length == sealed_length;
}

bool page_is_zero(const void *page)
{
	const uint8_t *bytes = page;

	/* The page is equal to itself moved by a byte, and its first byte is zero: memcmp has the quickest loop. */
	return !bytes[0] && !memcmp(bytes, bytes + 1, PAGE_SIZE - 1);
}
