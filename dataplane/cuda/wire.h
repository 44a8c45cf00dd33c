/* The messages between a guest's libcuda.so.1 and the server of its lender (docs/internals/cuda-protocol.md).
 *
 * A request is a header of 24 bytes and a body, an answer a header of 32 bytes and a body; little endian. Numbers in a
 * body take eight bytes, texts and arrays eight bytes of length before them.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	REQUEST_SIZE = 24,
	ANSWER_SIZE = 32,
	PIECE = 1024 * 1024,	      /* of a copy */
	SMALL_MAX = 64 * 1024,	      /* the body of an ordinary message */
	BODY_MAX = 64 * 1024 * 1024,  /* that of one with a module */
	TEXT_MAX = 4096,
	PARAMETERS_MAX = 32764,	      /* bytes of a kernel's parameters (CUDA C++ Programming Guide, "Functions") */
	OPTIONS_MAX = 64,
	LOG_MAX = 64 * 1024,
	LAYOUT_MAX = 4096,	      /* parameters of a kernel */
	LAUNCH_ATTRIBUTES_MAX = 16,
	LAUNCH_ATTRIBUTE_SIZE = 64,
};

#define CUDA_HELLO "vmcoal-cuda 2"

enum request_flag {
	REQUEST_ANSWER = 1,  /* the client waits */
	REQUEST_DELIVER = 2, /* and is told of an earlier failure in this context */
};

struct request {
	uint32_t length;  /* of the body */
	unsigned op, flags;
	uint64_t context; /* the calling thread's, or 0 */
	uint32_t sequence;
};

struct answer {
	uint32_t length, sequence;
	int32_t result;
	int32_t late; /* the failure of an earlier request, or 0 */
	uint32_t took_us;   /* this request, from its last byte to its answer */
	uint32_t before_us; /* the requests without an answer since the last one that had one */
	uint64_t at_ns;     /* of the lender's clock */
};

enum handle_type {
	HANDLE_NONE,
	HANDLE_CONTEXT,
	HANDLE_MODULE,
	HANDLE_FUNCTION,
	HANDLE_STREAM,
	HANDLE_EVENT,
	HANDLE_LIBRARY,
	HANDLE_KERNEL,
	HANDLE_LINK,
};

/* A handle is a number: which entry of the server's table (24 bits, from 1 on), how often the entry was used before
 * (16 bits), and the type (8 bits). The guest's library puts the GPU's number above. */
enum { HANDLE_INDEX_BITS = 24, HANDLE_USE_BITS = 16, HANDLE_TYPE_SHIFT = 40, HANDLE_GPU_SHIFT = 48 };

static inline uint64_t handle_make(enum handle_type type, unsigned index, unsigned use)
{
	return (uint64_t)type << HANDLE_TYPE_SHIFT | (uint64_t)(use & 0xffff) << HANDLE_INDEX_BITS | (index + 1);
}

static inline enum handle_type handle_type(uint64_t handle)
{
	return (enum handle_type)(handle >> HANDLE_TYPE_SHIFT & 0xff);
}

/* The default streams are numbers in the API itself: legacy (also 0), and a thread's own. */
enum { STREAM_LEGACY = 1, STREAM_PER_THREAD = 2 };

void cuda_request_pack(uint8_t *out, const struct request *request);

/* Returns false where no request can look so; `ops` is how many there are. */
bool cuda_request_parse(const uint8_t *data, unsigned ops, struct request *request);
void answer_pack(uint8_t *out, const struct answer *answer);
void answer_parse(const uint8_t *data, struct answer *answer);

/* What is left of a body. Whoever reads beyond its end gets zeros, and `bad` is set. */
struct reader {
	const uint8_t *at, *end;
	bool bad;
	int wrong; /* a CUresult: what the body names does not exist */
};

uint64_t read_number(struct reader *in);

/* `size` bytes, or NULL; they stay where they are. */
const uint8_t *read_raw(struct reader *in, size_t size);

/* An array with its length before it, of at most `max` bytes. */
const uint8_t *read_array(struct reader *in, size_t max, size_t *size);

/* A text without a NUL inside; it ends with one. */
const char *read_text(struct reader *in);

/* A body that grows, behind room for a header; its memory is kept for the next one. */
struct writer {
	uint8_t *data;
	size_t used, size;
	bool failed; /* there was no memory */
};

void writer_begin(struct writer *out, size_t header);
void writer_free(struct writer *out);
uint8_t *write_room(struct writer *out, size_t size);
void write_bytes(struct writer *out, const void *data, size_t size);
void write_number(struct writer *out, uint64_t number);
void write_array(struct writer *out, const void *data, size_t size);

/* A text that lies in `size` bytes. */
void write_text(struct writer *out, const char *text, size_t size);
