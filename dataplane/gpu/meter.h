/* Counts what passes between a guest and a lent GPU: bytes, calls, and how long the lender says that they took.
 *
 * It reads along and decides nothing: bytes that are no frame end the counting, not the connection. The counters are in
 * a file of a fixed layout that others map or read while they change, so that to look costs the pump nothing.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"

enum {
	METER_BUCKETS = 24, /* as the pager's histograms: less than 2^i microseconds */
	METER_VERSION = 1,
	REPLY_HEAD = 144, /* of PoCL-Remote 6.0's ReplyMsg_t (include/messages.h), which answers each of its calls */
	CUDA_SERVICE = 2, /* the others are PoCL-Remote's */
	CUDA_REQUEST = 24, CUDA_ANSWER = 32, /* cuda/wire.h: most of its calls have no answer, so requests are read too */
};

/* The file: little endian, 64 bits each. */
struct meter_page {
	uint64_t version;
	_Atomic uint64_t bytes_out, bytes_in; /* payload to and from the lender */
	_Atomic uint64_t calls, failed;	      /* those that were answered or need no answer; answers that tell of a failure */
	_Atomic uint64_t busy_us;	      /* in which at least one call was under way at the lender */
	_Atomic uint64_t latency[METER_BUCKETS];
};

/* One direction of the connection. */
struct meter_side {
	uint8_t head[FRAME_HEADER];
	size_t have;   /* of the head */
	uint32_t left; /* of the payload */
};

/* The messages of a stream, one way. */
struct meter_messages {
	uint8_t head[REPLY_HEAD];
	size_t have;
	uint64_t skip; /* bytes of data behind a head */
};

struct meter_stream {
	unsigned service;
	struct meter_messages out, in;
};

struct meter {
	struct meter_page *page; /* NULL: nothing is counted */
	struct meter_side out, in;
	struct meter_stream streams[STREAMS + 1];
	uint64_t busy_until; /* of the lender's clock, nanoseconds */
	bool lost;	     /* what comes is no frame */
};

/* Make the file and map it. Returns false, with errno, if that fails; `meter` counts nothing then. */
bool meter_open(struct meter *meter, const char *path);
void meter_close(struct meter *meter);

void meter_sent(struct meter *meter, const uint8_t *data, size_t size);
void meter_came(struct meter *meter, const uint8_t *data, size_t size);
