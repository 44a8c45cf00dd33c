/* When to ask the other store as well. A store that takes much longer than it usually does is stuck for this page, in a
 * lost packet or a busy processor; asking the other one costs little, if it is done seldom.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* How long a link takes for a page, as TCP estimates its round trip (RFC 6298). */
struct pace {
	int64_t mean_us; /* 0: nothing is known */
	int64_t deviation_us;
};

void pace_note(struct pace *pace, int64_t took_us);

/* An answer that takes longer than this is unusually late: the mean and four deviations, and never less than a
 * millisecond, so that no jitter of a processor counts. INT64_MAX where nothing is known. */
int64_t pace_late_us(const struct pace *pace);

/* One more fetch for each HEDGE_SHARE that were sent, and up to HEDGE_BURST of them saved up. */
enum { HEDGE_SHARE = 20, HEDGE_BURST = 32 };

struct hedge {
	uint32_t credit; /* fetches sent, less what was taken for them */
};

void hedge_sent(struct hedge *hedge);

/* Whether another store may be asked as well; then it counts. */
bool hedge_take(struct hedge *hedge);
