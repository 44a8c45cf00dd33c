#include "frame.h"

#include <stdbool.h>
#include <string.h>

uint32_t frame_number(const uint8_t *payload)
{
	return payload[0] | (uint32_t)payload[1] << 8 | (uint32_t)payload[2] << 16 | (uint32_t)payload[3] << 24;
}

void frame_put_number(uint8_t *out, uint32_t number)
{
	for (int i = 0; i < 4; i++)
		out[i] = (uint8_t)(number >> 8 * i);
}

static bool length_fits(enum frame_type type, uint32_t length)
{
	switch (type) {
	case FRAME_HELLO:
		return length == strlen(HELLO_TEXT) + HELLO_NONCE;
	case FRAME_OPEN:
		return length == 1;
	case FRAME_DATA:
		return length > 0 && length <= FRAME_MAX;
	case FRAME_CREDIT:
		return length == 4;
	case FRAME_CLOSE:
		return length == 0;
	}
	return false;
}

int frame_head(const uint8_t *data, size_t size, struct frame *frame)
{
	if (size < FRAME_HEADER)
		return 0;
	frame->type = data[0];
	frame->stream = data[2] | (unsigned)data[3] << 8;
	frame->length = frame_number(data + 4);
	frame->payload = data + FRAME_HEADER;
	if (data[1] || !length_fits(frame->type, frame->length))
		return -1;
	if (frame->type == FRAME_HELLO ? frame->stream != 0 : frame->stream < 1 || frame->stream > STREAMS)
		return -1;
	return 1;
}

int frame_parse(const uint8_t *data, size_t size, struct frame *frame)
{
	int found = frame_head(data, size, frame);

	if (found > 0 && size - FRAME_HEADER < frame->length)
		return 0;
	return found > 0 ? (int)(FRAME_HEADER + frame->length) : found;
}

void frame_header(uint8_t *out, enum frame_type type, unsigned stream, uint32_t length)
{
	out[0] = (uint8_t)type;
	out[1] = 0;
	out[2] = (uint8_t)stream;
	out[3] = (uint8_t)(stream >> 8);
	frame_put_number(out + 4, length);
}
