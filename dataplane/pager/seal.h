/* Sealed pages: AES-256-GCM (NIST SP 800-38D) with everything that proves a page kept here.
 *
 * The key, and for each page the version (the number of the seal, which is the nonce, never used twice under a key) and
 * the tag, stay with the borrower: 24 bytes a page, 0.6 %. A store has ciphertext only, at the page's place, of the size
 * of the page or of what it was packed into (pack.h): the length stays here too, and is proven with the rest. It can
 * neither read a page, nor forge one, nor give back an older one or another page's: the tag that is compared is not its
 * own but the one kept here.
 */
#pragma once

#include <gnutls/crypto.h>
#include <stdbool.h>
#include <stdint.h>

enum { PAGE_SIZE = 4096, SEAL_KEY_SIZE = 32, SEAL_TAG_SIZE = 16 };

/* `version` 0: no store has this page; it is zeros, or only here. `saved`: by how many bytes it is
 * shorter at the stores. At a million pages a second the versions of a region last for a century. */
struct seal_record {
	uint64_t version : 52, saved : 12;
	uint8_t tag[SEAL_TAG_SIZE];
};

/* A key in use. One thread at a time. */
struct seal {
	struct wide *wide; /* where the processor can; otherwise NULL */
	gnutls_aead_cipher_hd_t cipher;
};

bool seal_open(struct seal *seal, const uint8_t key[SEAL_KEY_SIZE]);
void seal_close(struct seal *seal);

static inline uint32_t seal_length(const struct seal_record *record)
{
	return PAGE_SIZE - record->saved;
}

/* Seal the `length` bytes of `plain`, 1 to PAGE_SIZE, into `sealed`, which has room for SEAL_TAG_SIZE bytes more.
 * `version` was never used before under this key. */
bool seal_page(struct seal *seal, uint64_t page, uint64_t version, const void *plain, uint32_t length, void *sealed,
	       struct seal_record *record);

/* Open seal_length() bytes in place; the SEAL_TAG_SIZE bytes after them are used and restored. False: it is not what was
 * sealed, and what there is now is of no use. */
bool seal_unseal(struct seal *seal, uint64_t page, const struct seal_record *record, void *sealed);

/* Whether a page is all zeros. */
bool page_is_zero(const void *page);
