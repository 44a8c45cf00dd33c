/* How long a store takes for a page, measured when asked: single reads, one at a time, beside whatever else goes on. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

enum { LONGEST_US = 10000000, LINK_US = 10000, LOOK_MAX = 4096 };

bool sample_open(struct sample *sample)
{
	sample->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	sample->seed = (uint64_t)now_us() | 1;
	return sample->done >= 0;
}

bool sample_begin(struct engine *engine, struct region *region, unsigned store, uint32_t count)
{
	struct sample *sample = &engine->sample;

	if (sample->running)
		return false;
	sample->region = region;
	sample->store = store;
	sample->wanted = count;
	sample->taken = 0;
	sample->ended = false;
	sample->until_us = now_us() + LONGEST_US;
	sample->link_us = now_us() + engine->deadline_us;
	sample->running = true;
	engine_changed(engine);
	return true;
}

void sample_cancel(struct engine *engine)
{
	engine->sample.until_us = 0;
}

static int by_size(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return a < b ? -1 : a > b;
}

bool sample_ended(struct engine *engine, uint32_t *pages, uint32_t *p50, uint32_t *p99)
{
	struct sample *sample = &engine->sample;
	uint64_t count;

	if (read(sample->done, &count, sizeof count) < 0)
		return false;
	qsort(sample->took, sample->taken, sizeof *sample->took, by_size);
	*pages = sample->taken;
	*p50 = sample->taken ? sample->took[sample->taken / 2] : 0;
	*p99 = sample->taken ? sample->took[sample->taken * 99 / 100] : 0;
	sample->running = false;
	return true;
}

static void end(struct sample *sample)
{
	uint64_t one = 1;

	sample->ended = true;
	if (write(sample->done, &one, sizeof one) < 0)
		perror("vmcoal-pager: eventfd");
}

/* A page that the store has, or any place of it where none is found soon: to read it takes as long. */
static uint32_t choose(struct engine *engine, struct sample *sample)
{
	const struct region *region = sample->region;
	uint32_t page, first;

	sample->seed = sample->seed * 6364136223846793005ULL + 1442695040888963407ULL;
	page = first = (uint32_t)((sample->seed >> 33) % region->pages);
	pthread_mutex_lock(&engine->lock);
	for (unsigned i = 0; i < LOOK_MAX; i++, page = page + 1 < region->pages ? page + 1 : 0)
		if (table_record(region, page)->version && !table_behind(region, sample->store, page)) {
			first = page;
			break;
		}
	pthread_mutex_unlock(&engine->lock);
	return first;
}

void sample(struct lane *lane)
{
	struct sample *sample = &lane->engine->sample;
	struct view *view = NULL;
	struct request *request;
	struct operation *operation;
	int64_t now = now_us();
	struct link *link;

	if (lane->number || !sample->running || sample->ended || sample->in_flight)
		return;
	for (unsigned slot = 0; slot < REGIONS_MAX && !view; slot++)
		if (lane->views[slot] && lane->views[slot]->region == sample->region)
			view = lane->views[slot];
	link = view && !view->region->closing ? view_link(view, sample->store, false) : NULL;
	if (!view || view->region->closing || sample->taken == sample->wanted || now >= sample->until_us ||
	    (!link && now >= sample->link_us)) {
		end(sample);
		return;
	}
	/* Another lane has one, so this one will. */
	if (!link) {
		lane->next_us = now + LINK_US < lane->next_us ? now + LINK_US : lane->next_us;
		return;
	}
	operation = operation_new(view, SAMPLE, choose(lane->engine, sample), 1);
	request = calloc(1, sizeof *request);
	if (!request)
		abort();
	request->owner = operation;
	request->buffer = buffer_get(lane, 1);
	request->bytes = PAGE_SIZE;
	request->pages = 1;
	request->timed = true;
	sample->in_flight = true;
	link_send(link, request, (uint64_t)operation->page * PAGE_SIZE);
}

void sample_answered(struct lane *lane, struct request *request)
{
	struct sample *sample = &lane->engine->sample;

	if (request->failed)
		sample->until_us = 0;
	else
		sample->took[sample->taken++] = (uint32_t)(now_us() - request->sent_us);
	sample->in_flight = false;
	buffer_put(lane, request->buffer, 1);
	operation_free(lane, request->owner);
	free(request);
}
