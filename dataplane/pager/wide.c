#include "wide.h"

#if defined __x86_64__ && defined __GNUC__

#include <cpuid.h>
#include <gnutls/gnutls.h>
#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#define WIDE __attribute__((target("aes,pclmul,sse4.1,avx512f,avx512bw,avx512vl,vaes,vpclmulqdq")))
#define INLINE static inline __attribute__((always_inline)) WIDE

enum { ROUNDS = 14, BLOCK = 16, VECTOR = 64, STRIDE = 4 * VECTOR, BLOCKS = STRIDE / BLOCK };

/* The powers are those of the hash key H, from H^16 to H^1, each times x: products of mirrored polynomials come out divided
 * by x (Gueron and Kounavis, "Intel carry-less multiplication instruction and its usage for computing the GCM mode", 2010).
 * Zeros follow them for the last stride, which is shorter. */
struct wide {
	__m128i rounds[ROUNDS + 1];
	uint8_t powers[2 * STRIDE];
};

/* x^128 is x^7 + x^2 + x + 1, mirrored. */
#define POLYNOMIAL 0xc200000000000000ULL

/* A product that is not reduced: low + middle * 2^64 + high * 2^128. */
struct product {
	__m512i low, middle, high;
};

/* Blocks are mirrored by bytes, as the order of the bits within them is. */
INLINE __m512i mirror(__m512i blocks)
{
	return _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
									       13, 14, 15)));
}

INLINE void multiply_add(struct product *sum, __m512i a, __m512i b)
{
	__m512i middle = _mm512_xor_si512(_mm512_clmulepi64_epi128(a, b, 0x01), _mm512_clmulepi64_epi128(a, b, 0x10));

	sum->low = _mm512_xor_si512(sum->low, _mm512_clmulepi64_epi128(a, b, 0x00));
	sum->middle = _mm512_xor_si512(sum->middle, middle);
	sum->high = _mm512_xor_si512(sum->high, _mm512_clmulepi64_epi128(a, b, 0x11));
}

/* Reduce the products and add those of the four blocks; the sum is the first block of what is returned. */
INLINE __m512i reduce(const struct product *sum)
{
	const __m512i polynomial = _mm512_set1_epi64((long long)POLYNOMIAL);
	__m512i middle, high, folded;
	__m256i half;

	folded = _mm512_clmulepi64_epi128(sum->low, polynomial, 0x00);
	middle = _mm512_ternarylogic_epi64(sum->middle, _mm512_shuffle_epi32(sum->low, (_MM_PERM_ENUM)0x4e), folded, 0x96);
	folded = _mm512_clmulepi64_epi128(middle, polynomial, 0x00);
	high = _mm512_ternarylogic_epi64(sum->high, _mm512_shuffle_epi32(middle, (_MM_PERM_ENUM)0x4e), folded, 0x96);
	half = _mm256_xor_si256(_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1));
	return _mm512_zextsi128_si512(
		_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

INLINE __m512i multiply(__m512i a, __m512i b)
{
	struct product sum = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};

	multiply_add(&sum, a, b);
	return reduce(&sum);
}

INLINE __m512i one_block(const void *block)
{
	return _mm512_zextsi128_si512(_mm_loadu_si128(block));
}

INLINE __m128i encrypt_block(const struct wide *wide, __m128i block)
{
	block = _mm_xor_si128(block, wide->rounds[0]);
	for (int i = 1; i < ROUNDS; i++)
		block = _mm_aesenc_si128(block, wide->rounds[i]);
	return _mm_aesenclast_si128(block, wide->rounds[ROUNDS]);
}

/* Four blocks of a stride, of which only `left` bytes are there. */
INLINE __mmask64 mask_of(size_t left, int vector)
{
	size_t before = (size_t)vector * VECTOR;

	return left >= before + VECTOR ? ~0ULL : left <= before ? 0 : ~0ULL >> (VECTOR - (left - before));
}

/* Encrypt counters, add them to a stride of at most 256 bytes, and add what is sealed of it to the hash. */
INLINE __m512i stride(const struct wide *wide, __m512i hash, __m512i *counter, const uint8_t *in, uint8_t *out,
		      size_t length, bool seal)
{
	const uint8_t *powers = wide->powers + STRIDE - (length + BLOCK - 1) / BLOCK * BLOCK;
	const __m512i four = _mm512_broadcast_i32x4(_mm_set_epi32(0, 0, 0, 4));
	struct product sum = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
	__m512i key[4], text[4], first = _mm512_broadcast_i32x4(wide->rounds[0]);

#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		key[i] = _mm512_xor_si512(mirror(*counter), first);
		*counter = _mm512_add_epi32(*counter, four);
		text[i] = _mm512_maskz_loadu_epi8(mask_of(length, i), in + i * VECTOR);
	}
	for (int round = 1; round < ROUNDS; round++) {
		__m512i part = _mm512_broadcast_i32x4(wide->rounds[round]);

#pragma GCC unroll 4
		for (int i = 0; i < 4; i++)
			key[i] = _mm512_aesenc_epi128(key[i], part);
	}
#pragma GCC unroll 4
	for (int i = 0; i < 4; i++) {
		__mmask64 mask = mask_of(length, i);
		__m512i other;

		key[i] = _mm512_aesenclast_epi128(key[i], _mm512_broadcast_i32x4(wide->rounds[ROUNDS]));
		other = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(text[i], key[i]));
		_mm512_mask_storeu_epi8(out + i * VECTOR, mask, other);
		text[i] = mirror(seal ? other : text[i]);
		if (!i)
			text[i] = _mm512_xor_si512(text[i], hash);
		multiply_add(&sum, text[i], _mm512_loadu_si512(powers + i * VECTOR));
	}
	return reduce(&sum);
}

WIDE void wide_crypt(const struct wide *wide, const uint8_t nonce[WIDE_NONCE], const uint8_t place[WIDE_PLACE],
		     const void *in, void *out, size_t length, bool seal, uint8_t tag[WIDE_TAG])
{
	const uint64_t sizes[2] = {__builtin_bswap64(WIDE_PLACE * 8), __builtin_bswap64(length * 8)};
	__m512i hash_key = one_block(wide->powers + STRIDE - BLOCK), hash, counter;
	uint8_t block[BLOCK] = {0};
	__m128i start, end;
	size_t at = 0;

	memcpy(block, place, WIDE_PLACE);
	hash = multiply(mirror(one_block(block)), hash_key);
	memcpy(block, nonce, WIDE_NONCE);
	memcpy(block + WIDE_NONCE, &(uint32_t){__builtin_bswap32(1)}, sizeof(uint32_t));
	start = _mm_loadu_si128((const void *)block);
	/* Mirrored, the counter is the first number of a block. */
	counter = mirror(_mm512_broadcast_i32x4(start));
	counter = _mm512_add_epi32(counter, _mm512_set_epi32(0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1));
	for (; length - at >= STRIDE; at += STRIDE)
		hash = stride(wide, hash, &counter, (const uint8_t *)in + at, (uint8_t *)out + at, STRIDE, seal);
	if (at < length)
		hash = stride(wide, hash, &counter, (const uint8_t *)in + at, (uint8_t *)out + at, length - at, seal);
	hash = multiply(_mm512_xor_si512(hash, mirror(one_block(sizes))), hash_key);
	end = _mm_xor_si128(_mm512_castsi512_si128(mirror(hash)), encrypt_block(wide, start));
	_mm_storeu_si128((void *)tag, end);
}

/* FIPS 197, section 5.2. */
WIDE static void expand_key(struct wide *wide, const uint8_t key[WIDE_KEY])
{
	uint32_t words[4 * (ROUNDS + 1)], factor = 1;

	memcpy(words, key, WIDE_KEY);
	for (size_t i = 8; i < sizeof words / sizeof *words; i++) {
		uint32_t word = words[i - 1];

		if (i % 4 == 0)
			word = (uint32_t)_mm_cvtsi128_si32(_mm_aeskeygenassist_si128(_mm_set1_epi32((int)word), 0));
		if (i % 8 == 0) {
			word = (word >> 8 | word << 24) ^ factor;
			factor <<= 1;
		}
		words[i] = words[i - 8] ^ word;
	}
	memcpy(wide->rounds, words, sizeof words);
	gnutls_memset(words, 0, sizeof words);
}

/* A hash key, mirrored, times x. */
static void times_x(uint64_t block[2])
{
	uint64_t carry = block[1] >> 63;

	block[1] = block[1] << 1 | block[0] >> 63;
	block[0] <<= 1;
	block[1] ^= carry ? POLYNOMIAL : 0;
	block[0] ^= carry;
}

static bool can(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & bit_VAES && c & bit_VPCLMULQDQ &&
	       __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx512f") &&
	       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

WIDE static void make_powers(struct wide *wide)
{
	__m512i power, first;
	uint64_t block[2];

	first = mirror(_mm512_zextsi128_si512(encrypt_block(wide, _mm_setzero_si128())));
	_mm_storeu_si128((void *)block, _mm512_castsi512_si128(first));
	times_x(block);
	first = power = one_block(block);
	for (int i = BLOCKS - 1; i >= 0; i--) {
		_mm_storeu_si128((void *)(wide->powers + i * BLOCK), _mm512_castsi512_si128(power));
		power = multiply(power, first);
	}
}

struct wide *wide_open(const uint8_t key[WIDE_KEY])
{
	struct wide *wide = can() ? aligned_alloc(VECTOR, (sizeof *wide + VECTOR - 1) / VECTOR * VECTOR) : NULL;

	if (!wide)
		return NULL;
	memset(wide, 0, sizeof *wide);
	expand_key(wide, key);
	make_powers(wide);
	return wide;
}

void wide_close(struct wide *wide)
{
	if (wide)
		gnutls_memset(wide, 0, sizeof *wide);
	free(wide);
}

#else

struct wide *wide_open(const uint8_t key[WIDE_KEY])
{
	(void)key;
	return NULL;
}

void wide_close(struct wide *wide)
{
	(void)wide;
}

void wide_crypt(const struct wide *wide, const uint8_t nonce[WIDE_NONCE], const uint8_t place[WIDE_PLACE],
		const void *in, void *out, size_t length, bool seal, uint8_t tag[WIDE_TAG])
{
	(void)wide, (void)nonce, (void)place, (void)in, (void)out, (void)length, (void)seal, (void)tag;
	__builtin_unreachable();
}

#endif
