/* What is late for a link, and how seldom another one is asked as well. */
#include "hedge.h"

#include "check.h"

int main(void)
{
	struct pace pace = {0};
	struct hedge hedge = {0};
	unsigned taken = 0;

	CHECK(pace_late_us(&pace) == INT64_MAX);
	for (int i = 0; i < 100; i++)
		pace_note(&pace, 100 + i % 3);
	CHECK(pace.mean_us >= 99 && pace.mean_us <= 102);
	CHECK(pace_late_us(&pace) == 1000);
	for (int i = 0; i < 100; i++)
		pace_note(&pace, i % 2 ? 22000 : 20000);
	CHECK(pace_late_us(&pace) > 22000 && pace_late_us(&pace) < 30000);
	/* One that got much slower is believed before long. */
	for (int i = 0; i < 30; i++)
		pace_note(&pace, 60000);
	CHECK(pace.mean_us > 55000);

	CHECK(!hedge_take(&hedge));
	for (int i = 0; i < 100000; i++) {
		hedge_sent(&hedge);
		taken += hedge_take(&hedge);
	}
	CHECK(taken == 100000 / HEDGE_SHARE);
	for (int i = 0; i < 100000; i++)
		hedge_sent(&hedge);
	for (taken = 0; hedge_take(&hedge);)
		taken++;
	CHECK(taken == HEDGE_BURST);
	return 0;
}
