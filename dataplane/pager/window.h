/* How much to have on its way when a lot is pulled over a link whose rate and latency are not known.
 *
 * It doubles as long as that brings more, which ends at the bandwidth-delay product: beyond it only queues grow. What
 * was the best rate is forgotten slowly, so that a link that got worse and better again is tried anew.
 */
#pragma once

#include <stdint.h>

enum { WINDOW_MIN = 64, WINDOW_MAX = 8192 };

struct window {
	uint32_t pages;	  /* to have on their way */
	uint32_t arrived; /* in this round */
	int64_t begun_us; /* the round */
	double best;	  /* pages a microsecond */
};

void window_init(struct window *window, int64_t now_us);

/* `count` pages came. */
void window_arrived(struct window *window, uint32_t count, int64_t now_us);
