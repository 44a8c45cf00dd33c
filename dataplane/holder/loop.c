#include "loop.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int loop_open(struct loop *loop)
{
	TAILQ_INIT(&loop->timers);
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	return loop->epoll < 0 ? -1 : 0;
}

int loop_add(struct loop *loop, struct source *source)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = source};

	return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, source->fd, &event);
}

void loop_close_source(struct loop *loop, struct source *source)
{
	if (source->fd < 0)
		return;
	epoll_ctl(loop->epoll, EPOLL_CTL_DEL, source->fd, NULL);
	close(source->fd);
	source->fd = -1;
}

void timer_arm(struct loop *loop, struct timer *timer, int64_t ms)
{
	struct timer *later;

	timer_cancel(loop, timer);
	timer->at = now_ms() + ms;
	timer->armed = true;
	TAILQ_FOREACH (later, &loop->timers, link)
		if (later->at > timer->at) {
			TAILQ_INSERT_BEFORE(later, timer, link);
			return;
		}
	TAILQ_INSERT_TAIL(&loop->timers, timer, link);
}

void timer_cancel(struct loop *loop, struct timer *timer)
{
	if (!timer->armed)
		return;
	timer->armed = false;
	TAILQ_REMOVE(&loop->timers, timer, link);
}

static int timeout(const struct loop *loop)
{
	const struct timer *first = TAILQ_FIRST(&loop->timers);
	int64_t left;

	if (!first)
		return -1;
	left = first->at - now_ms();
	return left <= 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

void loop_turn(struct loop *loop)
{
	struct epoll_event event;
	struct timer *timer;
	int count = epoll_wait(loop->epoll, &event, 1, timeout(loop));

	if (count < 0 && errno != EINTR) {
		perror("vmcoal-holder: epoll_wait");
		abort();
	}
	if (count > 0) {
		struct source *source = event.data.ptr;

		source->ready(source);
	}
	timer = TAILQ_FIRST(&loop->timers);
	if (timer && timer->at <= now_ms()) {
		timer_cancel(loop, timer);
		timer->fire(timer);
	}
}

void loop_close(struct loop *loop)
{
	close(loop->epoll);
}
