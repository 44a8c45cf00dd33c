#include "mux.h"

#include <string.h>

enum {
	TELL = WINDOW / 8,	/* credit is given back in pieces of this */
	SPARE = 8 * 1024,	/* room in `out` that data leaves */
	SPARE_FRAME = SPARE / 2, /* and what frames that came leave of it: every credit and end that may be due */
};

void mux_init(struct mux *mux, const struct mux_user *user)
{
	memset(mux, 0, sizeof *mux);
	mux->user = user;
	bytes_init(&mux->in, IN_MAX);
	bytes_init(&mux->out, OUT_MAX);
	for (unsigned i = 1; i <= STREAMS; i++)
		bytes_init(&mux->streams[i].arrived, WINDOW);
}

static void forget(struct mux *mux, unsigned number)
{
	struct stream *stream = &mux->streams[number];

	mux->user->gone(mux, number);
	bytes_free(&stream->arrived);
	*stream = (struct stream){.arrived.limit = WINDOW};
}

static void close_all(struct mux *mux)
{
	for (unsigned i = 1; i <= STREAMS; i++)
		if (mux->streams[i].open)
			forget(mux, i);
}

void mux_reset(struct mux *mux)
{
	close_all(mux);
	bytes_clear(&mux->in);
	bytes_clear(&mux->out);
	mux->greeted = false;
	mux->left = 0;
	mux->why = NULL;
}

void mux_free(struct mux *mux)
{
	mux_reset(mux);
	bytes_free(&mux->in);
	bytes_free(&mux->out);
}

static bool refuse(struct mux *mux, const char *why)
{
	mux->why = why;
	return false;
}

static bool send_frame(struct mux *mux, enum frame_type type, unsigned stream, const void *payload, uint32_t length)
{
	uint8_t *room = bytes_room(&mux->out, FRAME_HEADER + (size_t)length);

	if (!room)
		return false;
	frame_header(room, type, stream, length);
	if (length)
		memcpy(room + FRAME_HEADER, payload, length);
	bytes_added(&mux->out, FRAME_HEADER + (size_t)length);
	return true;
}

/* A stream that both have ended is no more; until then its number means the old one. */
static void settle(struct mux *mux, unsigned number)
{
	struct stream *stream = &mux->streams[number];

	if (stream->ended_here && stream->ended_there)
		forget(mux, number);
}

static bool hello(struct mux *mux, const struct frame *frame)
{
	if (memcmp(frame->payload, HELLO_TEXT, strlen(HELLO_TEXT)))
		return refuse(mux, "it speaks another version");
	close_all(mux);
	mux->greeted = true;
	if (!send_frame(mux, FRAME_HELLO, 0, frame->payload, frame->length))
		return refuse(mux, "it does not take its answers");
	return true;
}

static bool open_stream(struct mux *mux, const struct frame *frame)
{
	struct stream *stream = &mux->streams[frame->stream];

	if (stream->open)
		return refuse(mux, "it opened a stream twice");
	if (frame->payload[0] >= SERVICES)
		return refuse(mux, "it asked for an unknown service");
	stream->open = true;
	stream->service = frame->payload[0];
	stream->may_send = stream->may_come = WINDOW;
	return mux->user->opened(mux, frame->stream) || mux_end(mux, frame->stream) ||
	       refuse(mux, "it does not take its answers");
}

/* Tell the guest what the service took, now and then. Returns false where `out` has no room for that. */
static bool give_credit(struct mux *mux, unsigned number, uint32_t count)
{
	struct stream *stream = &mux->streams[number];
	uint8_t payload[4];

	stream->taken += count;
	if (stream->taken < TELL || stream->ended_there)
		return true;
	frame_put_number(payload, stream->taken);
	if (!send_frame(mux, FRAME_CREDIT, number, payload, sizeof payload))
		return false;
	stream->may_come += stream->taken;
	stream->taken = 0;
	return true;
}

static bool data_begins(struct mux *mux, struct stream *stream, const struct frame *frame)
{
	if (stream->ended_there || frame->length > stream->may_come)
		return refuse(mux, "it sent more than it may");
	stream->may_come -= frame->length;
	mux->current = frame->stream;
	mux->left = frame->length;
	return true;
}

/* What came of a frame of data, the rest of which may still be on its way. */
static bool data(struct mux *mux, const uint8_t *at, size_t size)
{
	unsigned number = mux->current;
	struct stream *stream = &mux->streams[number];
	size_t taken = 0;

	if (!stream->open || stream->ended_here)
		return true; /* nobody is there any more; its end is on the way */
	if (!bytes_used(&stream->arrived))
		taken = mux->user->give(mux, number, at, size);
	if (!stream->open || stream->ended_here)
		return true;
	if (taken && !give_credit(mux, number, (uint32_t)taken))
		return refuse(mux, "it does not take its answers");
	if (taken == size)
		return true;
	if (!bytes_add(&stream->arrived, at + taken, size - taken))
		return refuse(mux, "there is no memory for it");
	mux->user->arrived(mux, number);
	return true;
}

static bool credit(struct mux *mux, struct stream *stream, const struct frame *frame)
{
	uint32_t more = frame_number(frame->payload);

	if (more > WINDOW - stream->may_send)
		return refuse(mux, "it took more than it was sent");
	stream->may_send += more;
	return true;
}

static bool understand(struct mux *mux, const struct frame *frame)
{
	struct stream *stream = &mux->streams[frame->stream];

	if (frame->type == FRAME_HELLO)
		return hello(mux, frame);
	if (!mux->greeted)
		return refuse(mux, "it did not say hello");
	if (frame->type == FRAME_OPEN)
		return open_stream(mux, frame);
	if (!stream->open)
		return refuse(mux, "it used a stream that is not open");
	if (frame->type == FRAME_DATA)
		return data_begins(mux, stream, frame);
	if (frame->type == FRAME_CREDIT)
		return credit(mux, stream, frame);
	if (stream->ended_there)
		return refuse(mux, "it ended a stream twice");
	stream->ended_there = true;
	if (stream->ended_here)
		settle(mux, frame->stream);
	else
		mux->user->arrived(mux, frame->stream);
	return true;
}

bool mux_understand(struct mux *mux)
{
	struct frame frame;
	int found;

	while (bytes_used(&mux->in)) {
		size_t have = bytes_used(&mux->in), size = have < mux->left ? have : mux->left;

		/* What answers a frame may need: a guest that does not read its answers is not read either. */
		if (bytes_left(&mux->out) < SPARE_FRAME)
			return true;
		if (size) {
			mux->left -= (uint32_t)size;
			if (!data(mux, bytes_front(&mux->in), size))
				return false;
			bytes_take(&mux->in, size);
			continue;
		}
		found = frame_head(bytes_front(&mux->in), have, &frame);
		if (found <= 0)
			return !found || refuse(mux, "it sent no frame");
		size = FRAME_HEADER + (frame.type == FRAME_DATA ? 0 : (size_t)frame.length);
		if (have < size)
			return true;
		if (!understand(mux, &frame))
			return false;
		bytes_take(&mux->in, size);
	}
	return true;
}

uint32_t mux_may_send(const struct mux *mux, unsigned number)
{
	const struct stream *stream = &mux->streams[number];
	size_t left = bytes_left(&mux->out);
	uint32_t most = stream->may_send < FRAME_MAX ? stream->may_send : FRAME_MAX;

	if (!stream->open || stream->ended_here || left <= SPARE + FRAME_HEADER)
		return 0;
	left -= SPARE + FRAME_HEADER;
	return left < most ? (uint32_t)left : most;
}

uint8_t *mux_room(struct mux *mux, uint32_t count)
{
	uint8_t *room = bytes_room(&mux->out, FRAME_HEADER + (size_t)count);

	return room ? room + FRAME_HEADER : NULL;
}

void mux_sent(struct mux *mux, unsigned number, uint32_t count)
{
	uint8_t *room = count ? bytes_room(&mux->out, FRAME_HEADER + (size_t)count) : NULL;

	if (!room)
		return;
	frame_header(room, FRAME_DATA, number, count);
	bytes_added(&mux->out, FRAME_HEADER + (size_t)count);
	mux->streams[number].may_send -= count;
}

bool mux_taken(struct mux *mux, unsigned number, uint32_t count)
{
	bytes_take(&mux->streams[number].arrived, count);
	return give_credit(mux, number, count);
}

bool mux_end(struct mux *mux, unsigned number)
{
	struct stream *stream = &mux->streams[number];

	if (stream->ended_here)
		return true;
	if (!send_frame(mux, FRAME_CLOSE, number, NULL, 0))
		return false;
	stream->ended_here = true;
	bytes_free(&stream->arrived);
	settle(mux, number);
	return true;
}
