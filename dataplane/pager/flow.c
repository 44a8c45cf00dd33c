#include "flow.h"

/* A better rate counts by half, a worse one by this part: what is measured may be the guest, and not the link. */
enum { FADE = 16 };

void flow_sent(struct flow *flow, uint64_t bytes, int64_t now_us)
{
	flow->in_flight += bytes;
	if (flow->in_flight < FLOW_BUSY || flow->since_us)
		return;
	flow->since_us = now_us;
	flow->window = 0;
}

void flow_done(struct flow *flow, uint64_t bytes, uint64_t delivered, int64_t now_us)
{
	uint64_t rate;

	flow->in_flight -= bytes < flow->in_flight ? bytes : flow->in_flight;
	if (!flow->since_us)
		return;
	flow->window += delivered;
	if (now_us - flow->since_us >= FLOW_WINDOW_US) {
		rate = flow->window * 1000000 / (uint64_t)(now_us - flow->since_us);
		if (!flow->rate)
			flow->rate = rate;
		else if (rate > flow->rate)
			flow->rate += (rate - flow->rate) / 2;
		else
			flow->rate -= (flow->rate - rate) / FADE;
		flow->since_us = now_us;
		flow->window = 0;
	}
	if (flow->in_flight < FLOW_BUSY)
		flow->since_us = 0;
}
