/* The rate of a link is told by what comes while much is under way, and by nothing else. */
#include "flow.h"

#include "check.h"

enum { REQUEST = 64 << 10 };

/* Keep `depth` requests under way on a link of `rate` bytes a second, from `now` on. */
static int64_t stream(struct flow *flow, unsigned depth, unsigned requests, uint64_t rate, int64_t now)
{
	for (unsigned i = 0; i < depth; i++)
		flow_sent(flow, REQUEST, now);
	for (unsigned i = 0; i < requests; i++) {
		now += REQUEST * 1000000LL / (int64_t)rate;
		flow_done(flow, REQUEST, REQUEST, now);
		flow_sent(flow, REQUEST, now);
	}
	for (unsigned i = 0; i < depth; i++)
		flow_done(flow, REQUEST, REQUEST, now += REQUEST * 1000000LL / (int64_t)rate);
	CHECK(!flow->in_flight && !flow->since_us);
	return now;
}

int main(void)
{
	struct flow flow = {0};
	int64_t now = 1;

	/* One at a time: the rate could be anything. */
	now = stream(&flow, 1, 100, 1000000, now);
	CHECK(!flow.rate);
	now = stream(&flow, 8, 100, 12500000, now);
	CHECK(flow.rate > 11000000 && flow.rate < 14000000);
	/* A pause is no slow link, and neither are single requests after it. */
	now = stream(&flow, 1, 100, 100000, now + 60000000);
	CHECK(flow.rate > 11000000);
	/* Answers that come in bunches. */
	for (unsigned i = 0; i < 16; i++)
		flow_sent(&flow, REQUEST, now);
	for (unsigned bunch = 0; bunch < 100; bunch++) {
		now += 8 * REQUEST * 1000000LL / 12500000;
		for (unsigned i = 0; i < 8; i++)
			flow_done(&flow, REQUEST, REQUEST, now);
		for (unsigned i = 0; i < 8; i++)
			flow_sent(&flow, REQUEST, now);
	}
	for (unsigned i = 0; i < 16; i++)
		flow_done(&flow, REQUEST, REQUEST, now);
	CHECK(flow.rate > 11000000 && flow.rate < 16000000);
	/* A quicker link counts soon, a slower one after a while. */
	now = stream(&flow, 8, 2000, 100000000, now);
	CHECK(flow.rate > 80000000);
	now = stream(&flow, 8, 40, 12500000, now);
	CHECK(flow.rate > 50000000);
	now = stream(&flow, 8, 4000, 12500000, now);
	CHECK(flow.rate < 15000000);
	/* What fails delivers nothing. */
	flow = (struct flow){0};
	for (unsigned i = 0; i < 16; i++)
		flow_sent(&flow, REQUEST, now);
	for (unsigned i = 0; i < 16; i++)
		flow_done(&flow, REQUEST, 0, now + 10 * FLOW_WINDOW_US);
	CHECK(!flow.rate && !flow.in_flight);
	/* Answers to what was sent to the store before. */
	flow_done(&flow, REQUEST, REQUEST, now);
	CHECK(!flow.in_flight);
	return 0;
}
