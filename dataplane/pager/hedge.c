#include "hedge.h"

#include <stdlib.h>

enum { LATE_MIN_US = 1000 };

void pace_note(struct pace *pace, int64_t took_us)
{
	if (!pace->mean_us) {
		pace->mean_us = took_us;
		pace->deviation_us = took_us / 2;
		return;
	}
	pace->deviation_us += (llabs(took_us - pace->mean_us) - pace->deviation_us) / 4;
	pace->mean_us += (took_us - pace->mean_us) / 8;
}

int64_t pace_late_us(const struct pace *pace)
{
	int64_t late = pace->mean_us + 4 * pace->deviation_us;

	if (!pace->mean_us)
		return INT64_MAX;
	return late > LATE_MIN_US ? late : LATE_MIN_US;
}

void hedge_sent(struct hedge *hedge)
{
	if (hedge->credit < HEDGE_SHARE * HEDGE_BURST)
		hedge->credit++;
}

bool hedge_take(struct hedge *hedge)
{
	if (hedge->credit < HEDGE_SHARE)
		return false;
	hedge->credit -= HEDGE_SHARE;
	return true;
}
