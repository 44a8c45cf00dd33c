#include <errno.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

enum { EVENTS = 32, MESSAGES = 16, RETRY_US = 100000, IDLE_MS = 200 };

void lane_kick(struct lane *lane)
{
	uint64_t one = 1;

	if (write(lane->kick, &one, sizeof one) < 0 && errno != EAGAIN)
		perror("vmcoal-pager: eventfd");
}

static void requests_done(struct lane *lane);

static void unpark(struct lane *lane, struct operation *operation)
{
	pthread_mutex_lock(&lane->engine->lock);
	TAILQ_REMOVE(&lane->parked, operation, entry);
	pthread_mutex_unlock(&lane->engine->lock);
}

/* Fetches that wait for a store of a region that ends. */
static void give_up_parked(struct lane *lane)
{
	struct operation *operation, *next;

	for (operation = TAILQ_FIRST(&lane->parked); operation; operation = next) {
		next = TAILQ_NEXT(operation, entry);
		if (!operation->view->region->closing)
			continue;
		unpark(lane, operation);
		fetch_fail(lane, operation);
	}
}

/* Send again, or give up, what no store could be asked for before; `view` has a link to `store` now. */
static void retry_parked(struct lane *lane, const struct view *view, unsigned store)
{
	struct operations parked = TAILQ_HEAD_INITIALIZER(parked);
	struct operation *operation;

	pthread_mutex_lock(&lane->engine->lock);
	TAILQ_CONCAT(&parked, &lane->parked, entry);
	pthread_mutex_unlock(&lane->engine->lock);
	while ((operation = TAILQ_FIRST(&parked))) {
		TAILQ_REMOVE(&parked, operation, entry);
		/* It may be another server by now. */
		if (operation->view == view)
			operation->wrong &= ~(1U << store);
		operation->tried = operation->wrong;
		fetch_send(lane, operation);
	}
}

/* A store may answer errors and work again without a new connection. */
static void retry_failed(struct lane *lane)
{
	int64_t now;

	if (TAILQ_EMPTY(&lane->parked))
		return;
	now = now_us();
	if (now >= lane->retry_us) {
		retry_parked(lane, NULL, 0);
		lane->retry_us = now + RETRY_US;
	}
	if (!TAILQ_EMPTY(&lane->parked) && lane->retry_us < lane->next_us)
		lane->next_us = lane->retry_us;
}

static void lane_sync(struct lane *lane)
{
	struct engine *engine = lane->engine;

	give_up_parked(lane);
	requests_done(lane);

	pthread_mutex_lock(&engine->lock);
	lane->serial = engine->serial;
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct region *region = engine->regions[slot];

		if (!lane->views[slot] && region && !region->closing)
			lane->views[slot] = view_open(lane, region);
		if (lane->views[slot] && view_sync(lane, lane->views[slot])) {
			limbo_close(lane, lane->views[slot]);
			seal_close(&lane->views[slot]->seal);
			free(lane->views[slot]->homing.order);
			free(lane->views[slot]);
			lane->views[slot] = NULL;
			region->views--;
		}
	}
	pthread_cond_broadcast(&engine->idle);
	pthread_mutex_unlock(&engine->lock);
	/* A store may be gone for good. */
	retry_parked(lane, NULL, 0);
}

/* Links */

/* Tell the region of a link that came or went, and send again what waited for it. True: there is more to do now. */
static bool note_link(struct lane *lane, struct view *view, unsigned store, unsigned i)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct link *link = &view->links[store][i];
	bool ready = link->state == LINK_READY, begun;

	if (ready == view->was_ready[store][i] && !link->why[0])
		return false;
	pthread_mutex_lock(&engine->lock);
	region->ready[store] += ready;
	region->ready[store] -= view->was_ready[store][i];
	/* What was said to the description before tells nothing of the store that there is now. */
	if (view->stores[store].serial == region->meta->stores[store].serial)
		region->refused[store] = link->state == LINK_REFUSED || (region->refused[store] && !ready);
	snprintf(region->why[store], sizeof region->why[store], "%s", ready ? "" : link->why);
	if (ready) {
		/* What an earlier pager sent may arrive at the store late, but not much later than this. */
		if (region->hold_us[store] > now_us())
			region->hold_us[store] = now_us() + engine->deadline_us / 10;
		lane->evict_us = 0;
	}
	pthread_mutex_unlock(&engine->lock);
	link->why[0] = 0;
	begun = ready && !view->was_ready[store][i];
	view->was_ready[store][i] = ready;
	if (begun || link->state == LINK_REFUSED)
		retry_parked(lane, begun ? view : NULL, store);
	return begun || link->state == LINK_REFUSED;
}

static void requests_done(struct lane *lane)
{
	struct request *request;

	while ((request = TAILQ_FIRST(&lane->done))) {
		struct operation *operation = request->owner;

		TAILQ_REMOVE(&lane->done, request, entry);
		if (request->failed && request->write && request->link->state != LINK_READY)
			limbo_note(lane, request);
		switch (operation->kind) {
		case FETCH:
			fetch_answered(lane, request);
			break;
		case STORE:
			store_answered(lane, request);
			break;
		case SAMPLE:
			sample_answered(lane, request);
			break;
		}
	}
}

/* Deadlines and reconnections. Returns when to look again. */
static int64_t check_links(struct lane *lane, int64_t now)
{
	int64_t next = INT64_MAX;

	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct view *view = lane->views[slot];

		for (unsigned store = 0; view && store < META_STORES; store++) {
			const struct meta_store *description = &view->stores[store];

			for (unsigned i = 0; i < LINKS; i++) {
				struct link *link = &view->links[store][i];
				int64_t until;

				if (link->state == LINK_DOWN && !view->region->closing && description->address[0]) {
					if (link->retry_us <= now)
						link_open(link, description, (uint64_t)view->region->pages * PAGE_SIZE);
					else if (link->retry_us < next)
						next = link->retry_us;
				}
				/* Where one link is silent for so long, none of them is worth waiting for. */
				if (link->state == LINK_READY && link->connecting_us < view->region->stalled_us[store] &&
				    link->progress_us < view->region->stalled_us[store] - link->deadline_us / 2)
					link_close(link, "it does not answer in time");
				until = link_check(link, now);
				if (until < 0) {
					view->region->stalled_us[store] = now;
					engine_changed(lane->engine);
					until = now;
				}
				if (link->state == LINK_DOWN && description->address[0] && link->retry_us < until)
					until = link->retry_us;
				if (note_link(lane, view, store, i))
					until = now;
				if (link->state == LINK_READY) {
					int64_t late = fetch_hedge(lane, view, link, now);

					until = late < until ? late : until;
				}
				if (until < next)
					next = until;
			}
		}
	}
	return next;
}

/* Events */

static void read_faults(struct lane *lane, struct view *view)
{
	struct uffd_msg messages[MESSAGES];
	ssize_t length = view->faults < 0 ? -1 : read(view->faults, messages, sizeof messages);

	for (ssize_t i = 0; i < length / (ssize_t)sizeof *messages; i++) {
		const struct uffd_msg *message = &messages[i];
		uint64_t offset = message->arg.pagefault.address - view->region->base;
		uint64_t flags = message->arg.pagefault.flags;

		if (message->event != UFFD_EVENT_PAGEFAULT || offset / PAGE_SIZE >= view->region->pages)
			continue;
		fault_happened(lane, view, (uint32_t)(offset / PAGE_SIZE),
			       flags & UFFD_PAGEFAULT_FLAG_WP	   ? EVENT_PROTECT
			       : flags & UFFD_PAGEFAULT_FLAG_WRITE ? EVENT_WRITE
								   : EVENT_READ);
	}
}

static void happened(struct lane *lane, const struct epoll_event *event)
{
	struct tag *tag = event->data.ptr;
	uint64_t count;

	switch (tag->kind) {
	case SOURCE_KICK:
		if (read(lane->kick, &count, sizeof count) < 0 && errno != EAGAIN)
			perror("vmcoal-pager: eventfd");
		lane->evict_us = 0;
		break;
	case SOURCE_FAULTS:
		if (event->events & EPOLLERR)
			view_detach(lane, tag->view); /* QEMU is gone */
		else
			read_faults(lane, tag->view);
		break;
	case SOURCE_LINK:
		link_ready(tag->link, event->events);
		break;
	case SOURCE_LIMBO:
		limbo_happened(lane, tag->limbo);
		break;
	}
}

/* Wait for events. A lender on the same network answers in less time than it takes to go to sleep and to be woken, so
 * for as long as its answers take the lane looks again and again, and lets others run in between. */
static int wait_events(struct lane *lane, struct epoll_event *events, int timeout_ms)
{
	int count;

	while (timeout_ms && lane->waiting == 1 && now_us() < lane->spin_us) {
		count = epoll_wait(lane->epoll, events, EVENTS, 0);
		if (count)
			return count;
		sched_yield();
	}
	return epoll_wait(lane->epoll, events, EVENTS, timeout_ms);
}

static bool lane_ended(struct lane *lane)
{
	bool ending;

	pthread_mutex_lock(&lane->engine->lock);
	ending = lane->engine->ending;
	pthread_mutex_unlock(&lane->engine->lock);
	return ending;
}

static void *lane_run(void *argument)
{
	struct lane *lane = argument;
	struct epoll_event events[EVENTS];
	bool kicked = true;

	for (;;) {
		bool pausing = false;
		int64_t now, next;
		int count;

		if (kicked) {
			if (lane_ended(lane))
				return NULL;
			lane_sync(lane);
		}
		requests_done(lane);
		retry_failed(lane);
		evict(lane, 0);
		trim(lane);
		resync(lane);
		heal(lane);
		home(lane);
		sample(lane);
		requests_done(lane);
		faults_resume(lane);
		/* Last, so that there is a deadline for what was sent above. */
		now = now_us();
		next = check_links(lane, now);
		if (lane->next_us < next)
			next = lane->next_us;
		lane->next_us = INT64_MAX;
		next = next == INT64_MAX ? -1 : next <= now ? 0 : (next - now + 999) / 1000;
		if (!TAILQ_EMPTY(&lane->done))
			next = 0;
		/* Between two bites of a stream a lane has nothing to do either. */
		if (next < 0 && buffers_spare(lane)) {
			if (lane->idle)
				buffers_trim(lane);
			else
				next = IDLE_MS;
			pausing = !lane->idle;
		}
		count = wait_events(lane, events, next > 60000 ? 60000 : (int)next);
		lane->idle = pausing && !count;
		kicked = false;
		for (int i = 0; i < count; i++) {
			const struct tag *tag = events[i].data.ptr;

			kicked |= tag->kind == SOURCE_KICK;
			happened(lane, &events[i]);
			requests_done(lane);
		}
	}
}

bool lane_start(struct engine *engine, unsigned number)
{
	struct lane *lane = calloc(1, sizeof *lane);
	struct epoll_event event = {.events = EPOLLIN};

	if (!lane)
		return false;
	lane->engine = engine;
	lane->number = number;
	lane->next_us = INT64_MAX;
	lane->batch = 1;
	TAILQ_INIT(&lane->done);
	TAILQ_INIT(&lane->parked);
	lane->epoll = epoll_create1(EPOLL_CLOEXEC);
	lane->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	lane->kick_tag.kind = SOURCE_KICK;
	event.data.ptr = &lane->kick_tag;
	if (lane->epoll < 0 || lane->kick < 0 || epoll_ctl(lane->epoll, EPOLL_CTL_ADD, lane->kick, &event) < 0)
		return false;
	engine->lanes[number] = lane;
	return !pthread_create(&lane->thread, NULL, lane_run, lane);
}
