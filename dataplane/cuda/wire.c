#include "wire.h"

#include <stdlib.h>
#include <string.h>

static void put(uint8_t *out, uint64_t number, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		out[i] = (uint8_t)(number >> 8 * i);
}

static uint64_t get(const uint8_t *data, unsigned bytes)
{
	uint64_t number = 0;

	for (unsigned i = 0; i < bytes; i++)
		number |= (uint64_t)data[i] << 8 * i;
	return number;
}

void cuda_request_pack(uint8_t *out, const struct request *request)
{
	put(out, request->length, 4);
	put(out + 4, request->op, 2);
	put(out + 6, request->flags, 2);
	put(out + 8, request->context, 8);
	put(out + 16, request->sequence, 4);
	put(out + 20, 0, 4);
}

bool cuda_request_parse(const uint8_t *data, unsigned ops, struct request *request)
{
	request->length = (uint32_t)get(data, 4);
	request->op = (unsigned)get(data + 4, 2);
	request->flags = (unsigned)get(data + 6, 2);
	request->context = get(data + 8, 8);
	request->sequence = (uint32_t)get(data + 16, 4);
	if (request->op >= ops || request->length > BODY_MAX || get(data + 20, 4))
		return false;
	return request->flags == 0 || request->flags == REQUEST_ANSWER ||
	       request->flags == (REQUEST_ANSWER | REQUEST_DELIVER);
}

void answer_pack(uint8_t *out, const struct answer *answer)
{
	put(out, answer->length, 4);
	put(out + 4, answer->sequence, 4);
	put(out + 8, (uint32_t)answer->result, 4);
	put(out + 12, (uint32_t)answer->late, 4);
	put(out + 16, answer->took_us, 4);
	put(out + 20, answer->before_us, 4);
	put(out + 24, answer->at_ns, 8);
}

void answer_parse(const uint8_t *data, struct answer *answer)
{
	answer->length = (uint32_t)get(data, 4);
	answer->sequence = (uint32_t)get(data + 4, 4);
	answer->result = (int32_t)get(data + 8, 4);
	answer->late = (int32_t)get(data + 12, 4);
	answer->took_us = (uint32_t)get(data + 16, 4);
	answer->before_us = (uint32_t)get(data + 20, 4);
	answer->at_ns = get(data + 24, 8);
}

const uint8_t *read_raw(struct reader *in, size_t size)
{
	const uint8_t *at = in->at;

	if (in->bad || size > (size_t)(in->end - in->at)) {
		in->bad = true;
		return NULL;
	}
	in->at += size;
	return at;
}

uint64_t read_number(struct reader *in)
{
	const uint8_t *at = read_raw(in, 8);

	return at ? get(at, 8) : 0;
}

const uint8_t *read_array(struct reader *in, size_t max, size_t *size)
{
	uint64_t length = read_number(in);
	const uint8_t *at = NULL;

	if (length > max)
		in->bad = true;
	else
		at = read_raw(in, (size_t)length);
	*size = at ? (size_t)length : 0;
	return at;
}

const char *read_text(struct reader *in)
{
	size_t size;
	const char *text = (const char *)read_array(in, TEXT_MAX, &size);

	if (!size || memchr(text, 0, size) != text + size - 1) {
		in->bad = true;
		return "";
	}
	return text;
}

uint8_t *write_room(struct writer *out, size_t size)
{
	size_t grown = out->size ? out->size : 4096;
	uint8_t *data;

	if (out->failed)
		return NULL;
	while (grown - out->used < size)
		grown *= 2;
	if (grown > out->size) {
		data = realloc(out->data, grown);
		if (!data) {
			out->failed = true;
			return NULL;
		}
		out->data = data;
		out->size = grown;
	}
	data = out->data + out->used;
	out->used += size;
	return data;
}

void writer_begin(struct writer *out, size_t header)
{
	out->used = 0;
	out->failed = false;
	write_room(out, header);
}

void writer_free(struct writer *out)
{
	free(out->data);
	*out = (struct writer){.data = NULL};
}

void write_bytes(struct writer *out, const void *data, size_t size)
{
	uint8_t *room = write_room(out, size);

	if (room && size)
		memcpy(room, data, size);
}

void write_number(struct writer *out, uint64_t number)
{
	uint8_t *room = write_room(out, 8);

	if (room)
		put(room, number, 8);
}

void write_array(struct writer *out, const void *data, size_t size)
{
	write_number(out, size);
	write_bytes(out, data, size);
}

void write_text(struct writer *out, const char *text, size_t size)
{
	size_t length = strnlen(text, size < TEXT_MAX ? size : TEXT_MAX - 1);

	if (length == size)
		length--;
	write_number(out, length + 1);
	write_bytes(out, text, length);
	write_bytes(out, "", 1);
}
