#include "seal.h"

#include <endian.h>
#include <string.h>

#include "wide.h"

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

bool seal_page(struct seal *seal, uint64_t page, uint64_t version, const void *plain, void *sealed,
	       struct seal_record *record)
{
	struct nonce nonce = {0, htole64(version)};
	uint64_t place = htole64(page);
	size_t length = PAGE_SIZE + SEAL_TAG_SIZE;

	record->version = version;
	if (seal->wide) {
		wide_crypt(seal->wide, (const void *)&nonce, (const void *)&place, plain, sealed, PAGE_SIZE, true, record->tag);
		return true;
	}
	if (gnutls_aead_cipher_encrypt(seal->cipher, &nonce, sizeof nonce, &place, sizeof place, SEAL_TAG_SIZE, plain,
				       PAGE_SIZE, sealed, &length) < 0)
		return false;
	memcpy(record->tag, (char *)sealed + PAGE_SIZE, SEAL_TAG_SIZE);
	return true;
}

bool seal_unseal(struct seal *seal, uint64_t page, const struct seal_record *record, void *sealed)
{
	struct nonce nonce = {0, htole64(record->version)};
	uint64_t place = htole64(page);
	uint8_t *behind = (uint8_t *)sealed + PAGE_SIZE, saved[SEAL_TAG_SIZE];
	size_t length = PAGE_SIZE;
	int failed;

	if (seal->wide) {
		wide_crypt(seal->wide, (const void *)&nonce, (const void *)&place, sealed, sealed, PAGE_SIZE, false, saved);
		return !gnutls_memcmp(saved, record->tag, SEAL_TAG_SIZE);
	}
	memcpy(saved, behind, sizeof saved);
	memcpy(behind, record->tag, SEAL_TAG_SIZE);
	failed = gnutls_aead_cipher_decrypt(seal->cipher, &nonce, sizeof nonce, &place, sizeof place, SEAL_TAG_SIZE,
					    sealed, PAGE_SIZE + SEAL_TAG_SIZE, sealed, &length);
	memcpy(behind, saved, sizeof saved);
	return !failed && length == PAGE_SIZE;
}

bool page_is_zero(const void *page)
{
	const uint8_t *bytes = page;

	/* The page is equal to itself moved by a byte, and its first byte is zero: memcmp has the quickest loop. */
	return !bytes[0] && !memcmp(bytes, bytes + 1, PAGE_SIZE - 1);
}
