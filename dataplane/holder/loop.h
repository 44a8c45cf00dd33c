/* The event loop: descriptors (epoll, level-triggered, one event a turn) and timers on the monotonic clock.
 *
 * One event a turn means that a callback may remove and free any source: no stale event of the same batch can follow.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct source {
	int fd;
	void (*ready)(struct source *source);
};

struct timer {
	bool armed;
	int64_t at;
	void (*fire)(struct timer *timer);
	TAILQ_ENTRY(timer) link;
};

struct loop {
	int epoll;
	TAILQ_HEAD(timers, timer) timers;
};

#define container_of(pointer, type, member)                                                                            \
	((type *)(void *)((char *)(pointer) - __builtin_offsetof(type, member)))

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

/* Both return 0 or -1 with errno. */
int loop_open(struct loop *loop);
int loop_add(struct loop *loop, struct source *source);

/* Forget a source and close its descriptor; does nothing to one whose descriptor is -1. */
void loop_close_source(struct loop *loop, struct source *source);

/* Fire `timer` once in `ms`, whatever it was set to before. */
void timer_arm(struct loop *loop, struct timer *timer, int64_t ms);
void timer_cancel(struct loop *loop, struct timer *timer);

/* Wait for the next event or timer and run its callback. */
void loop_turn(struct loop *loop);
void loop_close(struct loop *loop);
