/* The prefetcher: finds streams in the faults of a region, several at once and interleaved, in either direction and
 * with strides, and says what to ask for ahead of them.
 *
 * What is fetched ahead causes no fault when it is used, so now and then a page in the middle of a wish is a *marker*: it is
 * fetched, but kept out of the memory, so that its use faults, at the cost of a copy, and tells that the stream lives.
 * A marker that is never used tells the contrary.
 *
 * The window of a stream grows only while its reader catches up with what is still on its way: that makes it the
 * bandwidth-delay product of the link, whatever that is, and no more.
 * It shrinks when a marker is thrown away, and when a page that was asked for has to be fetched again.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { STREAMS = 16, STREAM_RECENT = 32, STREAM_WISH_MAX = 64, STREAM_STRIDE_MAX = 1024, STREAM_WISHES = 16 };

struct stream {
	int64_t last;  /* the last page that its reader is known to have used */
	int64_t ahead; /* the next page to ask for */
	int32_t step;
	uint32_t window; /* pages to have ahead of the reader */
	uint32_t unmarked; /* asked for since the last marker */
	uint32_t stamp;
	bool write;
};

enum { STREAM_UNMARKED = STREAM_WISH_MAX };

struct streams {
	struct stream table[STREAMS];
	int64_t recent[STREAM_RECENT];
	unsigned recent_next;
	uint32_t stamp;
	uint32_t pages;	     /* of the region */
	uint32_t window_max; /* pages; 0 turns it off */
	uint32_t doubt;	     /* wishes in a row, nearly, that nobody used */
};

/* Fetch `count` pages from `first` on, `step` apart; number `marker` of them marks, or none (STREAM_UNMARKED). */
struct stream_wish {
	uint32_t first, count, marker;
	int32_t step;
	bool write;
};

enum stream_find {
	FOUND_ABSENT, /* the fault has to be fetched now */
	FOUND_LATE,   /* it is on its way */
	FOUND_MARKER, /* it was fetched in time */
	FOUND_ZERO,   /* no store has it */
};

void streams_init(struct streams *streams, uint32_t pages, uint32_t window_max);

/* A fault. Fills in up to STREAM_WISHES wishes and returns how many. */
unsigned streams_fault(struct streams *streams, uint32_t page, bool write, enum stream_find find,
		       struct stream_wish *wishes);

/* Whether a stream brought its reader or writer to a page. */
bool streams_follow(const struct streams *streams, uint32_t page);

/* A marker was thrown away unused. */
void streams_unused(struct streams *streams, uint32_t page);
