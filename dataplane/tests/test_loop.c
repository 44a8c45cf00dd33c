#include "loop.h"

#include <unistd.h>

#include "check.h"

static struct loop loop;
static char order[8];
static struct timer timers[3];

static void timer_fired(struct timer *timer)
{
	order[strlen(order)] = (char)('a' + (timer - timers));
}

static void timers_fire_in_order_of_their_time(void)
{
	for (int i = 0; i < 3; i++)
		timers[i].fire = timer_fired;
	timer_arm(&loop, &timers[0], 8);
	timer_arm(&loop, &timers[1], 1);
	timer_arm(&loop, &timers[2], 4);
	timer_arm(&loop, &timers[1], 6); /* arming again moves it */
	while (strlen(order) < 3)
		loop_turn(&loop);
	CHECK_TEXT(order, "cba");
	timer_arm(&loop, &timers[0], 0);
	timer_cancel(&loop, &timers[0]);
	timer_cancel(&loop, &timers[0]);
	timer_arm(&loop, &timers[1], 0);
	loop_turn(&loop);
	CHECK_TEXT(order, "cbab");
}

static struct source sources[2];
static int fired;

static void close_both(struct source *source)
{
	(void)source;
	fired++;
	loop_close_source(&loop, &sources[0]);
	loop_close_source(&loop, &sources[1]);
}

/* Both are ready at once; the first callback closes both, and the second must not run. */
static void a_closed_source_has_no_stale_event(void)
{
	int ends[2][2];

	for (int i = 0; i < 2; i++) {
		CHECK(!pipe(ends[i]));
		sources[i] = (struct source){ends[i][0], close_both};
		CHECK(!loop_add(&loop, &sources[i]));
		CHECK(write(ends[i][1], "x", 1) == 1);
	}
	timer_arm(&loop, &timers[0], 5);
	memset(order, 0, sizeof order);
	while (!*order)
		loop_turn(&loop);
	CHECK(fired == 1);
	CHECK(sources[0].fd == -1 && sources[1].fd == -1);
	close(ends[0][1]);
	close(ends[1][1]);
}

int main(void)
{
	CHECK(!loop_open(&loop));
	timers_fire_in_order_of_their_time();
	a_closed_source_has_no_stale_event();
	loop_close(&loop);
	return 0;
}
