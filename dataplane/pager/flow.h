/* What a link gives while it is kept busy, over all connections to a store. A few requests at a time say nothing of its
 * rate, only of its latency, so they do not count; and answers come in bunches, so it is looked at for a while. */
#pragma once

#include <stdint.h>

enum { FLOW_BUSY = 256 << 10, FLOW_WINDOW_US = 200000 };

struct flow {
	uint64_t in_flight, window; /* bytes */
	int64_t since_us;	    /* the window began; 0: not enough is under way */
	uint64_t rate;		    /* bytes a second; 0: not known */
};

void flow_sent(struct flow *flow, uint64_t bytes, int64_t now_us);

/* `bytes` that were sent are answered, or never will be: then nothing was `delivered`. */
void flow_done(struct flow *flow, uint64_t bytes, uint64_t delivered, int64_t now_us);
