/* Regions as lanes see them: what the region table says is brought about by each lane for itself. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "engine.h"

unsigned view_store(const struct view *view, const struct link *link)
{
	return link >= &view->links[1][0];
}

struct link *view_link(struct view *view, unsigned store, bool demand)
{
	struct link *best = NULL;

	if (demand && view->links[store][0].state == LINK_READY)
		return &view->links[store][0];
	for (unsigned i = 1; i <= LINKS; i++) {
		struct link *link = &view->links[store][i % LINKS];

		if (link->state == LINK_READY && (!best || (i < LINKS && link->sent_bytes < best->sent_bytes)))
			best = link;
	}
	return best;
}

static void view_attach(struct lane *lane, struct view *view)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = &view->faults_tag};

	view->faults = view->region->faults;
	if (epoll_ctl(lane->epoll, EPOLL_CTL_ADD, view->faults, &event) < 0)
		perror("vmcoal-pager: cannot wait for faults");
	view->region->attached++;
}

void view_detach(struct lane *lane, struct view *view)
{
	if (view->faults < 0)
		return;
	epoll_ctl(lane->epoll, EPOLL_CTL_DEL, view->faults, NULL);
	view->faults = -1;
	view->region->attached--;
}

struct view *view_open(struct lane *lane, struct region *region)
{
	struct view *view = calloc(1, sizeof *view);

	if (!view || !seal_open(&view->seal, region->meta->key))
		abort();
	view->region = region;
	view->faults = -1;
	view->faults_tag = (struct tag){.kind = SOURCE_FAULTS, .view = view};
	for (unsigned store = 0; store < META_STORES; store++)
		for (unsigned i = 0; i < LINKS; i++) {
			view->tags[store][i] = (struct tag){.kind = SOURCE_LINK, .view = view, .link = &view->links[store][i]};
			link_init(&view->links[store][i], lane->epoll, &view->tags[store][i], &lane->done,
				  &region->meters[store], lane->engine->deadline_us);
		}
	region->views++;
	return view;
}

bool view_sync(struct lane *lane, struct view *view)
{
	struct region *region = view->region;

	if (view->faults >= 0 && (region->faults != view->faults || region->closing))
		view_detach(lane, view);
	if (view->faults < 0 && region->faults >= 0 && !region->closing)
		view_attach(lane, view);
	for (unsigned store = 0; store < META_STORES; store++) {
		if (!region->closing && view->stores[store].serial == region->meta->stores[store].serial)
			continue;
		view->stores[store] = region->meta->stores[store];
		for (unsigned i = 0; i < LINKS; i++) {
			struct link *link = &view->links[store][i];

			link_close(link, "the store changed");
			link->state = LINK_DOWN;
			link->retry_us = 0;
		}
	}
	return region->closing && !view->operations;
}
