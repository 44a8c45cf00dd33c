#include "stream.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOW_FIRST = 4, WINDOW_FLOOR = 4 * STREAM_WISH_MAX, DOUBT_SILENT = 8, DOUBT_MAX = 64, MARKED_MAX = 512 };

void streams_init(struct streams *streams, uint32_t pages, uint32_t window_max)
{
	memset(streams, 0, sizeof *streams);
	streams->pages = pages;
	streams->window_max = window_max;
	for (int i = 0; i < STREAM_RECENT; i++)
		streams->recent[i] = INT64_MIN / 2;
}

/* Whether a stream may have brought its reader to `page`, or not much further. */
static bool reaches(const struct stream *stream, int64_t page)
{
	int64_t steps;

	if (!stream->step || (page - stream->last) % stream->step)
		return false;
	steps = (page - stream->last) / stream->step;
	return steps > 0 && steps <= (stream->ahead - stream->last) / stream->step + 2;
}

static struct stream *oldest(struct streams *streams)
{
	struct stream *found = &streams->table[0];

	for (int i = 1; i < STREAMS; i++)
		if (streams->stamp - streams->table[i].stamp > streams->stamp - found->stamp)
			found = &streams->table[i];
	return found;
}

static bool lately(const struct streams *streams, int64_t page)
{
	for (int i = 0; i < STREAM_RECENT; i++)
		if (streams->recent[i] == page)
			return true;
	return false;
}

/* The step that leads from earlier faults to this one: neighbours at once, longer strides when seen twice. */
static int32_t find_step(const struct streams *streams, int64_t page)
{
	for (unsigned i = 1; i <= STREAM_RECENT; i++) {
		int64_t before = streams->recent[(streams->recent_next - i) % STREAM_RECENT];
		int64_t step = page - before;

		if (!step || llabs(step) > STREAM_STRIDE_MAX)
			continue;
		if (step == 1 || lately(streams, before - step))
			return (int32_t)step;
	}
	return 0;
}

static unsigned wish(struct streams *streams, struct stream *stream, struct stream_wish *wishes)
{
	int64_t target = stream->last + (int64_t)stream->step * stream->window;
	int64_t missing = (target - stream->ahead) / stream->step + 1;
	unsigned count = 0;
	bool marked;

	/* Small bites would cost a request each: wait until there is something to ask for. */
	if (missing < STREAM_WISH_MAX && missing * 2 < stream->window)
		return 0;
	for (; missing > 0 && count < STREAM_WISHES; count++) {
		int64_t pages = missing < STREAM_WISH_MAX ? missing : STREAM_WISH_MAX;
		int64_t end = stream->step > 0 ? (int64_t)streams->pages : -1;
		int64_t room = (end - stream->ahead + stream->step - (stream->step > 0 ? 1 : -1)) / stream->step;

		if (pages > room)
			pages = room;
		if (pages <= 0)
			break;
		/* A marker costs a fault, so a window has few of them, but each comes in time for what is to follow. */
		stream->unmarked += (uint32_t)pages;
		marked = stream->unmarked >= (stream->window / 8 < MARKED_MAX ? stream->window / 8 : MARKED_MAX);
		wishes[count] = (struct stream_wish){.first = (uint32_t)stream->ahead,
						     .count = (uint32_t)pages,
						     .marker = marked ? (uint32_t)pages / 2 : STREAM_UNMARKED,
						     .step = stream->step,
						     .write = stream->write};
		stream->ahead += pages * stream->step;
		stream->unmarked = marked ? 0 : stream->unmarked;
		missing -= pages;
	}
	return count;
}

unsigned streams_fault(struct streams *streams, uint32_t page, bool write, enum stream_find find,
		       struct stream_wish *wishes)
{
	struct stream *stream = NULL;
	int32_t step;

	if (streams->window_max < WINDOW_FIRST)
		return 0;
	for (int i = 0; i < STREAMS && !stream; i++)
		if (reaches(&streams->table[i], page))
			stream = &streams->table[i];
	if (stream) {
		/* It was asked for and is not here: evicted before its use, or it did not fit, or the reader is not one. */
		bool lost = find == FOUND_ABSENT && (stream->ahead - page) / stream->step > 0;

		if (find == FOUND_MARKER && streams->doubt)
			streams->doubt--;
		/* The reader has caught up with what was asked for, or not all of it was fetched: ask again from here. */
		if (find == FOUND_ABSENT || find == FOUND_ZERO || (page - stream->ahead) / stream->step > 0 || page == stream->ahead)
			stream->ahead = (int64_t)page + stream->step;
		/* Up to the floor it grows in any case: one fault for many pages is worth it on the quickest link. */
		if (lost)
			stream->window /= 2;
		else if (find == FOUND_ABSENT || find == FOUND_LATE || stream->window < WINDOW_FLOOR)
			stream->window = stream->window ? stream->window * 2 : WINDOW_FIRST;
		if (stream->window > streams->window_max)
			stream->window = streams->window_max;
	} else {
		step = find_step(streams, page);
		streams->recent[streams->recent_next++ % STREAM_RECENT] = page;
		if (!step)
			return 0;
		stream = oldest(streams);
		/* After many guesses that missed, a stream has to prove itself before anything is fetched for it. */
		*stream = (struct stream){.step = step,
					  .ahead = (int64_t)page + step,
					  .window = streams->doubt >= DOUBT_SILENT ? 0 : WINDOW_FIRST};
	}
	stream->last = page;
	stream->write = write;
	stream->stamp = ++streams->stamp;
	return stream->window ? wish(streams, stream, wishes) : 0;
}

bool streams_follow(const struct streams *streams, uint32_t page)
{
	for (int i = 0; i < STREAMS; i++)
		if (streams->table[i].window && reaches(&streams->table[i], page))
			return true;
	return false;
}

void streams_unused(struct streams *streams, uint32_t page)
{
	if (streams->doubt < DOUBT_MAX)
		streams->doubt += 2;
	for (int i = 0; i < STREAMS; i++) {
		struct stream *stream = &streams->table[i];

		if (stream->step && !((page - stream->last) % stream->step) &&
		    (page - stream->last) / stream->step >= 0 && (stream->ahead - page) / stream->step > 0)
			stream->window /= 2;
	}
}
