/* The prefetcher, fed with the faults that a reader would cause: what was fetched in time causes none. */
#include "stream.h"

#include "check.h"

enum { PAGES = 65536 };

enum { AWAY, COMING, MARKER, HERE };

static struct streams streams;
static uint8_t state[PAGES];
static unsigned arrives[PAGES];
static unsigned clock_now, latency, demand, soft, late, fetched;

static void fault(uint32_t page, enum stream_find find)
{
	struct stream_wish wishes[STREAM_WISHES];
	unsigned count = streams_fault(&streams, page, false, find, wishes);

	CHECK(count <= STREAM_WISHES);
	for (unsigned i = 0; i < count; i++) {
		CHECK(wishes[i].count && wishes[i].count <= STREAM_WISH_MAX);
		CHECK(wishes[i].marker < wishes[i].count || wishes[i].marker == STREAM_UNMARKED);
		for (uint32_t n = 0; n < wishes[i].count; n++) {
			int64_t at = wishes[i].first + (int64_t)n * wishes[i].step;

			CHECK(at >= 0 && at < PAGES);
			if (state[at] != AWAY)
				continue;
			state[at] = n == wishes[i].marker ? MARKER : COMING;
			arrives[at] = clock_now + latency;
			fetched++;
		}
	}
}

/* A writer of pages that no store has, where there is room for `room` of those that are asked for at a time. Returns how
 * many faults it had. */
static unsigned fill(uint32_t pages, uint32_t room)
{
	unsigned faults = 0;

	for (uint32_t page = 0; page < pages; page++) {
		struct stream_wish wishes[STREAM_WISHES];
		uint32_t left = room;
		unsigned count;

		if (state[page] == HERE)
			continue;
		faults++;
		count = streams_fault(&streams, page, true, FOUND_ZERO, wishes);
		for (unsigned i = 0; i < count; i++)
			for (uint32_t n = 0; n < wishes[i].count && left; n++, left--) {
				CHECK(wishes[i].write && wishes[i].step == 1 && wishes[i].first > page);
				state[wishes[i].first + n] = HERE;
			}
	}
	return faults;
}

static void touch(uint32_t page)
{
	clock_now++;
	if (state[page] == HERE || (state[page] == COMING && arrives[page] <= clock_now)) {
		state[page] = HERE;
		return;
	}
	if (state[page] == AWAY) {
		demand++;
		fault(page, FOUND_ABSENT);
		clock_now += latency;
	} else if (arrives[page] > clock_now) {
		late++;
		fault(page, FOUND_LATE);
		if (clock_now < arrives[page])
			clock_now = arrives[page];
	} else {
		soft++;
		fault(page, FOUND_MARKER);
	}
	state[page] = HERE;
}

static void begin(unsigned ticks, uint32_t window)
{
	memset(state, AWAY, sizeof state);
	streams_init(&streams, PAGES, window);
	latency = ticks;
	demand = soft = late = fetched = 0;
}

static void tell(const char *name, unsigned touched)
{
	printf("%-12s latency %4u: of %u pages %u demanded, %u markers, %u late; %u fetched ahead\n", name, latency,
	       touched, demand, soft, late, fetched);
}

int main(void)
{
	static const int32_t strides[] = {1, -1, 3, -7, 64, 1000};
	uint64_t seed = 42;

	/* One reader forwards, at any latency: a handful of faults are waited for in full, and nothing else is. */
	for (unsigned ticks = 1; ticks <= 4096; ticks *= 8) {
		begin(ticks, 8192);
		for (uint32_t page = 0; page < PAGES; page++)
			touch(page);
		tell("sequential", PAGES);
		CHECK(demand <= 3);
		CHECK(late <= 200);
		CHECK(soft <= PAGES / 16);
	}
	/* Strides, both ways. */
	for (unsigned i = 0; i < sizeof strides / sizeof *strides; i++) {
		int32_t step = strides[i];
		unsigned touched = 0;

		begin(20, 1024);
		for (int64_t page = step > 0 ? 0 : PAGES - 1; page >= 0 && page < PAGES && touched < 4096; page += step) {
			touch((uint32_t)page);
			touched++;
		}
		tell("stride", touched);
		CHECK(demand <= 4);
		CHECK(fetched <= touched + 1024);
	}
	/* Eight readers take turns. */
	begin(50, 1024);
	for (uint32_t page = 0; page < PAGES / 8; page++)
		for (uint32_t reader = 0; reader < 8; reader++)
			touch(reader * (PAGES / 8) + page);
	tell("eight", PAGES);
	CHECK(demand <= 32);
	/* Random use fetches next to nothing ahead. */
	begin(20, 1024);
	for (int i = 0; i < 20000; i++) {
		seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
		touch((uint32_t)(seed >> 33) % PAGES);
	}
	tell("random", 20000);
	CHECK(fetched <= demand / 4);
	/* Guesses that miss silence it: pairs of neighbours, and the markers are thrown away. */
	begin(20, 1024);
	for (uint32_t i = 0; i < 400; i++) {
		uint32_t page = (i * 7919) % (PAGES / 64) * 64;

		touch(page);
		touch(page + 1);
		for (uint32_t n = 0; n < 64; n++)
			if (state[page + n] == MARKER)
				streams_unused(&streams, page + n);
	}
	tell("pairs", 800);
	CHECK(fetched <= 100);
	/* What it fetched is evicted before its use: it does less and less. */
	begin(20, 1024);
	for (uint32_t page = 0; page < 4000; page++)
		touch(page);
	memset(state, AWAY, sizeof state);
	fetched = demand = 0;
	for (uint32_t page = 4000, i = 0; i < 200; i++, page += 37) {
		touch(page);
		memset(state, AWAY, sizeof state);
	}
	tell("evicted", 200);
	CHECK(fetched <= 2048);
	/* Pages that no store has are made many at a time, also where some that were asked for could not be. */
	begin(20, 1024);
	CHECK(!streams_follow(&streams, 0));
	CHECK(fill(10000, UINT32_MAX) < 100);
	CHECK(streams_follow(&streams, 10000) && !streams_follow(&streams, 30000));
	begin(20, 1024);
	CHECK(fill(10000, 50) < 300);
	/* Turned off. */
	begin(20, 0);
	for (uint32_t page = 0; page < 1000; page++)
		touch(page);
	CHECK(!fetched && demand == 1000);
	return 0;
}
