/* A queue of bytes with a bound: filled at its end, taken from its front. It takes up to four times its bound of memory,
 * so that its bytes are seldom moved. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
	uint8_t *data;
	size_t start, end, size; /* size: what is allocated */
	size_t limit;
};

/* It takes memory only once there is something in it. */
void bytes_init(struct bytes *bytes, size_t limit);
void bytes_free(struct bytes *bytes);
void bytes_clear(struct bytes *bytes);

static inline size_t bytes_used(const struct bytes *bytes)
{
	return bytes->end - bytes->start;
}

static inline size_t bytes_left(const struct bytes *bytes)
{
	return bytes->limit - bytes_used(bytes);
}

static inline const uint8_t *bytes_front(const struct bytes *bytes)
{
	return bytes->data ? bytes->data + bytes->start : NULL;
}

/* A place to write at least `room` bytes to, or NULL if they do not fit; then say how many there are. */
uint8_t *bytes_room(struct bytes *bytes, size_t room);
void bytes_added(struct bytes *bytes, size_t count);

/* Returns false where they do not fit, and adds nothing. */
bool bytes_add(struct bytes *bytes, const void *data, size_t count);
void bytes_take(struct bytes *bytes, size_t count);
