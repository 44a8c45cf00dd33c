/* AES-256-GCM with the 512-bit instructions for AES and for products of polynomials (VAES, VPCLMULQDQ with AVX-512):
 * three times as fast for a page as the libraries that distributions have. The same algorithm as seal.c has from GnuTLS,
 * bit for bit, so a page that was sealed by one is opened by the other; seal.c takes this where the processor can.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WIDE_KEY = 32, WIDE_NONCE = 12, WIDE_PLACE = 8, WIDE_TAG = 16 };

struct wide;

/* NULL: this processor does not have the instructions, or there is no memory. */
struct wide *wide_open(const uint8_t key[WIDE_KEY]);
void wide_close(struct wide *wide);

/* From `in` to `out`, which may be the same; `place` is authenticated as well. `seal`: `in` is plain, else it is sealed.
 * Writes the tag, which whoever opens something has to compare with the one that there should be. */
void wide_crypt(const struct wide *wide, const uint8_t nonce[WIDE_NONCE], const uint8_t place[WIDE_PLACE],
		const void *in, void *out, size_t length, bool seal, uint8_t tag[WIDE_TAG]);
