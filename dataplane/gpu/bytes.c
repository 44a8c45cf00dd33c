#include "bytes.h"

#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 4096 };

void bytes_init(struct bytes *bytes, size_t limit)
{
	*bytes = (struct bytes){.limit = limit};
}

void bytes_free(struct bytes *bytes)
{
	free(bytes->data);
	bytes_init(bytes, bytes->limit);
}

void bytes_clear(struct bytes *bytes)
{
	bytes->start = bytes->end = 0;
}

uint8_t *bytes_room(struct bytes *bytes, size_t room)
{
	size_t used = bytes_used(bytes), size = bytes->size ? bytes->size : SMALLEST;

	if (room > bytes_left(bytes))
		return NULL;
	/* Only once as much was taken as has to be moved: what is moved in all is then no more than what goes through. */
	if (bytes->start >= used && bytes->size - bytes->end < room) {
		if (used)
			memcpy(bytes->data, bytes->data + bytes->start, used);
		bytes->start = 0;
		bytes->end = used;
	}
	while (size < bytes->end + room)
		size *= 2;
	if (size > bytes->size) {
		uint8_t *data = realloc(bytes->data, size);

		if (!data)
			return NULL;
		bytes->data = data;
		bytes->size = size;
	}
	return bytes->data + bytes->end;
}

void bytes_added(struct bytes *bytes, size_t count)
{
	bytes->end += count;
}

bool bytes_add(struct bytes *bytes, const void *data, size_t count)
{
	uint8_t *room = bytes_room(bytes, count);

	if (!room)
		return false;
	memcpy(room, data, count);
	bytes_added(bytes, count);
	return true;
}

void bytes_take(struct bytes *bytes, size_t count)
{
	bytes->start += count;
	if (bytes->start == bytes->end)
		bytes_clear(bytes);
}
