/* Writes that were given up may still happen. A connection that is ended with writes unanswered goes to limbo: nothing
 * more is sent on it, and what comes is thrown away, until the store closes its end. The store does so after it has done
 * all that it was sent, so from then on it is settled what those writes did. Until then their pages are not written to
 * that store again: an old write could come after the new one, and undo it.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"

/* The store ended it, or may still do something. */
static void leave(struct lane *lane, struct limbo *limbo, bool settled)
{
	struct region *region = limbo->tag.view->region;

	epoll_ctl(lane->epoll, EPOLL_CTL_DEL, limbo->fd, NULL);
	close(limbo->fd);
	limbo->fd = -1;
	if (!settled)
		return;
	pthread_mutex_lock(&lane->engine->lock);
	TAILQ_REMOVE(&region->limbos, limbo, entry);
	pthread_mutex_unlock(&lane->engine->lock);
	free(limbo->extents);
	free(limbo);
	lane->evict_us = 0;
}

void limbo_note(struct lane *lane, const struct request *request)
{
	const struct operation *operation = request->owner;
	struct view *view = operation->view;
	struct link *link = request->link;
	struct limbo *limbo = link->limbo;
	struct epoll_event event = {.events = EPOLLIN};
	bool replaced;

	pthread_mutex_lock(&lane->engine->lock);
	replaced = link->serial < view->region->other_bytes[view_store(view, link)];
	pthread_mutex_unlock(&lane->engine->lock);
	/* What happens at a store that is one no more does not matter. */
	if (replaced && link->left >= 0) {
		close(link->left);
		link->left = -1;
	}
	if (link->left >= 0) {
		limbo = calloc(1, sizeof *limbo);
		if (!limbo)
			abort();
		limbo->fd = link->left;
		limbo->store = view_store(view, link);
		limbo->tag = (struct tag){.kind = SOURCE_LIMBO, .view = view, .limbo = limbo};
		link->left = -1;
		link->limbo = limbo;
		event.data.ptr = &limbo->tag;
		epoll_ctl(lane->epoll, EPOLL_CTL_ADD, limbo->fd, &event);
		pthread_mutex_lock(&lane->engine->lock);
		TAILQ_INSERT_TAIL(&view->region->limbos, limbo, entry);
		pthread_mutex_unlock(&lane->engine->lock);
	}
	/* libnbd closed it, because the store did. */
	if (!limbo)
		return;
	pthread_mutex_lock(&lane->engine->lock);
	limbo->extents = realloc(limbo->extents, (limbo->count + 1) * sizeof *limbo->extents);
	if (!limbo->extents)
		abort();
	limbo->extents[limbo->count++] = (struct extent){view->region, operation->page, operation->count};
	pthread_mutex_unlock(&lane->engine->lock);
}

bool limbo_has(const struct region *region, unsigned store, uint32_t page, uint32_t count)
{
	const struct limbo *limbo;

	TAILQ_FOREACH (limbo, &region->limbos, entry)
		for (uint32_t i = 0; limbo->store == store && i < limbo->count; i++)
			if (limbo->extents[i].page < page + count &&
			    page < limbo->extents[i].page + limbo->extents[i].count)
				return true;
	return false;
}

uint64_t limbo_count(const struct region *region, unsigned store)
{
	const struct limbo *limbo;
	uint64_t pages = 0;

	TAILQ_FOREACH (limbo, &region->limbos, entry)
		for (uint32_t i = 0; limbo->store == store && i < limbo->count; i++)
			pages += limbo->extents[i].count;
	return pages;
}

void limbo_happened(struct lane *lane, struct limbo *limbo)
{
	char rest[4096];
	ssize_t length;

	do
		length = recv(limbo->fd, rest, sizeof rest, MSG_DONTWAIT);
	while (length > 0);
	/* Where the network gave up, the store may not have: its pages stay here until it is replaced. */
	if (!length || errno == ECONNRESET)
		leave(lane, limbo, true);
	else if (errno != EAGAIN && errno != EINTR)
		leave(lane, limbo, false);
}

void limbo_forget(struct region *region, unsigned store)
{
	struct limbo *limbo;

	TAILQ_FOREACH (limbo, &region->limbos, entry)
		if (limbo->store == store)
			limbo->store = META_STORES;
}

void limbo_close(struct lane *lane, const struct view *view)
{
	struct limbo *limbo, *next;

	for (limbo = TAILQ_FIRST(&view->region->limbos); limbo; limbo = next) {
		next = TAILQ_NEXT(limbo, entry);
		if (limbo->tag.view != view)
			continue;
		TAILQ_REMOVE(&view->region->limbos, limbo, entry);
		if (limbo->fd >= 0) {
			epoll_ctl(lane->epoll, EPOLL_CTL_DEL, limbo->fd, NULL);
			close(limbo->fd);
		}
		free(limbo->extents);
		free(limbo);
	}
}
