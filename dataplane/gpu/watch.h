/* What a descriptor is waited for, kept in step with epoll. */
#pragma once

#include <stdint.h>
#include <sys/epoll.h>

struct watch {
	int epoll, fd;
	uint32_t events; /* 0: not watched at all, so that a hang-up nobody can act on yet does not spin */
	uint64_t tag;
};

static inline void watch_for(struct watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.u64 = watch->tag};

	if (events == watch->events)
		return;
	epoll_ctl(watch->epoll, !events ? EPOLL_CTL_DEL : watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch->fd,
		  &event);
	watch->events = events;
}
