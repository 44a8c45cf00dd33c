#include "window.h"

static const double better = 1.25, forgotten = 0.05;

void window_init(struct window *window, int64_t now_us)
{
	*window = (struct window){.pages = 2 * WINDOW_MIN, .begun_us = now_us};
}

void window_arrived(struct window *window, uint32_t count, int64_t now_us)
{
	int64_t took = now_us - window->begun_us;
	double rate;

	window->arrived += count;
	/* Twice what is on its way: the pages of a round were all asked for with this window, but for the first half. */
	if (window->arrived < 2 * window->pages)
		return;
	rate = (double)window->arrived / (double)(took > 0 ? took : 1);
	if (rate > window->best * better && window->pages < WINDOW_MAX)
		window->pages *= 2;
	window->best = rate > window->best ? rate : window->best * (1 - forgotten);
	window->arrived = 0;
	window->begun_us = now_us;
}
