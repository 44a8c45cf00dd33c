/* The frames in which many byte streams share one connection (docs/internals/gpu-protocol.md).
 *
 * A header of eight bytes, little endian: type, zero, stream (16 bits), length of the payload (32 bits).
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
	FRAME_HEADER = 8,
	FRAME_MAX = 64 * 1024, /* of a payload */
	STREAMS = 64,	       /* numbered from 1 on */
	WINDOW = 2048 * 1024,  /* bytes of a stream and direction that may be under way */
	HELLO_NONCE = 16,
};

enum frame_type {
	FRAME_HELLO = 1,  /* both ways: HELLO_TEXT and a nonce, which the answer repeats; ends every stream */
	FRAME_OPEN = 2,	  /* by the guest: one byte, the service */
	FRAME_DATA = 3,	  /* 1 to FRAME_MAX bytes, within the credit */
	FRAME_CREDIT = 4, /* 32 bits: so many bytes of the stream were taken */
	FRAME_CLOSE = 5,  /* nothing more comes; the other end answers in kind */
};

#define HELLO_TEXT "vmcoal-gpu 2"

struct frame {
	enum frame_type type;
	unsigned stream;
	uint32_t length;
	const uint8_t *payload;
};

/* Read the header of the first frame of `size` bytes. Returns 1, 0 if it is not complete yet, or -1 if this is no frame:
 * unknown type, stream or length. `payload` is where it will be, come or not. */
int frame_head(const uint8_t *data, size_t size, struct frame *frame);

/* Read the first frame of `size` bytes. Returns its bytes with the header, 0 if it is not complete yet, or -1 if this is
 * no frame: unknown type, stream or length. */
int frame_parse(const uint8_t *data, size_t size, struct frame *frame);

/* Write a header of FRAME_HEADER bytes. */
void frame_header(uint8_t *out, enum frame_type type, unsigned stream, uint32_t length);

uint32_t frame_number(const uint8_t *payload);
void frame_put_number(uint8_t *out, uint32_t number);
