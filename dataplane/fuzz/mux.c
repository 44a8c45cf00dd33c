/* What a guest sends to a lent GPU's bridge: the first byte seeds how its service behaves, the rest is the guest's. */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "mux.h"

enum { REPLY = 64 };

static uint32_t state;

static void must(bool condition)
{
	if (!condition)
		abort();
}

static uint32_t random_number(void)
{
	state = state * 1664525 + 1013904223;
	return state >> 16;
}

static bool opened(struct mux *mux, unsigned number)
{
	must(number >= 1 && number <= STREAMS && mux->streams[number].service < SERVICES);
	return random_number() % 8 != 0;
}

static size_t give(struct mux *mux, unsigned number, const uint8_t *data, size_t size)
{
	volatile uint8_t last = data[size - 1]; /* it is there to be read */

	(void)last;
	must(mux->streams[number].open && !bytes_used(&mux->streams[number].arrived));
	if (random_number() % 16 == 0)
		mux_end(mux, number);
	return random_number() % (size + 1);
}

static void arrived(struct mux *mux, unsigned number)
{
	struct stream *stream = &mux->streams[number];
	size_t used = bytes_used(&stream->arrived);

	must(stream->open && used <= WINDOW);
	if (used && random_number() % 2)
		mux_taken(mux, number, (uint32_t)(1 + random_number() % used));
	if (random_number() % 16 == 0)
		mux_end(mux, number);
}

static void gone(struct mux *mux, unsigned number)
{
	must(mux->streams[number].open);
}

static const struct mux_user user = {opened, give, arrived, gone};

static void check(const struct mux *mux)
{
	must(bytes_used(&mux->out) <= OUT_MAX);
	for (unsigned i = 1; i <= STREAMS; i++)
		must(mux->streams[i].may_send <= WINDOW && mux->streams[i].may_come <= WINDOW);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	static struct mux mux;
	size_t at = 1;
	bool good = true;

	if (!size)
		return 0;
	state = data[0];
	mux_init(&mux, &user);
	while (good && at < size) {
		size_t piece = 1 + random_number() % 64;

		if (piece > size - at)
			piece = size - at;
		if (!bytes_add(&mux.in, data + at, piece))
			break;
		at += piece;
		good = mux_understand(&mux);
		must(good == !mux.why);
		check(&mux);
		for (unsigned i = 1; good && i <= STREAMS; i++) {
			uint32_t room = mux_may_send(&mux, i);

			if (room && random_number() % 4 == 0 && mux_room(&mux, room))
				mux_sent(&mux, i, room < REPLY ? room : REPLY);
		}
		if (random_number() % 2)
			bytes_clear(&mux.out);
	}
	mux_free(&mux);
	return 0;
}
