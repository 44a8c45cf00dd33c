/* Faults, what is fetched ahead of them, and how pages come into the memory. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { STARVED_US = 20000 };

/* Under the lock: whether the prefetcher may have a page now, and then it is on its way. */
static bool prefetch_page(struct engine *engine, struct view *view, uint32_t page, bool write)
{
	uint8_t byte = *table_byte(engine, view->region, page);

	if (byte != PAGE_ABSENT || !table_room_ahead(engine))
		return false;
	table_step(engine, view->region, page, write ? EVENT_WRITE : EVENT_PREFETCH);
	engine->stats[STAT_PREFETCHED]++;
	return true;
}

/* Under the lock. */
static void defer(struct engine *engine, struct region *region, uint32_t page, enum page_event event, uint32_t needs)
{
	if (engine->deferred_count == engine->deferred_room) {
		engine->deferred_room = engine->deferred_room ? engine->deferred_room * 2 : 64;
		engine->deferred = realloc(engine->deferred, engine->deferred_room * sizeof *engine->deferred);
		if (!engine->deferred)
			abort();
	}
	engine->deferred[engine->deferred_count++] = (struct fault){region, page, event, needs};
	engine->stats[STAT_DEFERRED]++;
	engine->short_of_room = true;
}

/* There is no memory for the last pages of a batch. Who waits for them goes on waiting, until there may be some. */
static void starve(struct engine *engine, struct region *region, const struct batch *batch, uint32_t installed)
{
	pthread_mutex_lock(&engine->lock);
	for (uint32_t page = batch->page + installed; page < batch->page + batch->count; page++) {
		uint8_t *byte = table_byte(engine, region, page);

		/* A mark is still there, where there was one. */
		table_set(engine, region, page, table_poisoned(region, page) ? PAGE_POISONED : batch->before);
		if (region->faults >= 0 && (batch->demand || *byte & PAGE_NOTED))
			defer(engine, region, page, batch->protect ? EVENT_READ : EVENT_WRITE, 1);
		*byte &= (uint8_t)~PAGE_NOTED;
		engine->stats[STAT_STARVED]++;
	}
	engine->starved_us = now_us() + STARVED_US;
	pthread_mutex_unlock(&engine->lock);
}

bool install(struct lane *lane, struct region *region, struct batch batch)
{
	uint32_t installed = memory_install(region, batch.page, batch.count, batch.bytes, batch.protect);

	if (installed < batch.count)
		starve(lane->engine, region, &batch, installed);
	table_release(lane->engine, region, batch.page, batch.count, true, batch.demand);
	return installed == batch.count;
}

void install_found(struct lane *lane, struct region *region, struct batch batch, uint32_t slot)
{
	batch.bytes = standby_bytes(&lane->engine->standby, slot);
	batch.before = PAGE_STANDBY;
	/* Without memory for it, it is on standby again, and perhaps nobody else has it. */
	if (!install(lane, region, batch))
		return;
	pthread_mutex_lock(&lane->engine->lock);
	standby_free(&lane->engine->standby, slot);
	pthread_mutex_unlock(&lane->engine->lock);
}

/* Pages that no store has are made ahead of a stream as well: it costs nothing, and saves a fault each. */
static void zero_ahead(struct lane *lane, struct view *view, uint32_t page, uint32_t count, bool write)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	uint32_t ready = 0;

	pthread_mutex_lock(&engine->lock);
	/* What stores are about to forget is not made anew meanwhile: a trim passes over pages that are here. */
	while (!engine->trim_count && ready < count && *table_byte(engine, region, page + ready) == PAGE_ZERO &&
	       table_room_ahead(engine)) {
		table_step(engine, region, page + ready, write ? EVENT_WRITE : EVENT_READ);
		*table_byte(engine, region, page + ready++) |= PAGE_BUSY;
	}
	engine->stats[STAT_ZERO] += ready;
	pthread_mutex_unlock(&engine->lock);
	if (ready)
		install(lane, region, (struct batch){page, ready, NULL, !write, false, PAGE_ZERO});
}

static void prefetch(struct lane *lane, struct view *view, const struct stream_wish *wish)
{
	struct engine *engine = lane->engine;
	struct operation *operations[RUN_MAX];
	const struct region *region = view->region;
	struct operation *marked = NULL;
	unsigned count = 0;
	uint32_t at = 0, guessed = 0;

	/* What streams by pushes out what has streamed by. */
	evict(lane, wish->count);
	if (wish->step == 1)
		zero_ahead(lane, view, wish->first, wish->count, wish->write);
	pthread_mutex_lock(&engine->lock);
	while (at < wish->count) {
		uint32_t page = wish->first + (uint32_t)((int32_t)at * wish->step), run = 0;

		while (at + run < wish->count && (!run || wish->step == 1 || wish->step == -1)) {
			uint32_t next = page + (uint32_t)((int32_t)run * wish->step);
			/* The marker is not for writing, or it could not be held. */
			bool write = wish->write && at + run != wish->marker;

			if (run && !table_joins(region, wish->step == 1 ? next - 1 : next))
				break;
			if (!prefetch_page(engine, view, next, write))
				break;
			run++;
		}
		if (run) {
			uint32_t first = wish->step == -1 ? page - run + 1 : page;

			operations[count] = fetch_begin(view, first, run);
			if (wish->marker >= at && wish->marker < at + run) {
				marked = operations[count];
				marked->marker = wish->step == -1 ? run - 1 - (wish->marker - at) : wish->marker - at;
			}
			guessed += run;
			count++;
		}
		at += run ? run : 1;
	}
	if (marked)
		marked->guessed = guessed;
	pthread_mutex_unlock(&engine->lock);
	for (unsigned i = 0; i < count; i++)
		fetch_send(lane, operations[i]);
}

/* Under the lock: the first of the deferred faults that there is room for, or their number. */
static unsigned deferred_find(const struct engine *engine)
{
	unsigned i = 0;

	/* When nothing is on its way home there will not be more room than there is. And a store that turned out not to have
	 * the region's bytes will make none. */
	while (i < engine->deferred_count && table_bounded(engine->deferred[i].region) &&
	       !table_room(engine, engine->writing ? engine->deferred[i].needs : 1))
		i++;
	return i;
}

void faults_resume(struct lane *lane)
{
	struct engine *engine = lane->engine;
	struct fault fault;

	for (;;) {
		struct view *view;
		unsigned i;

		pthread_mutex_lock(&engine->lock);
		i = deferred_find(engine);
		if (i < engine->deferred_count && now_us() < engine->starved_us) {
			if (engine->starved_us < lane->next_us)
				lane->next_us = engine->starved_us;
			i = engine->deferred_count;
		}
		if (i == engine->deferred_count) {
			pthread_mutex_unlock(&engine->lock);
			return;
		}
		fault = engine->deferred[i];
		memmove(engine->deferred + i, engine->deferred + i + 1,
			(--engine->deferred_count - i) * sizeof fault);
		view = lane->views[fault.region->slot];
		/* Under the lock, because nothing else keeps a region of which this lane has no view. */
		if (!view)
			memory_wake(fault.region, fault.page, 1);
		pthread_mutex_unlock(&engine->lock);
		if (view)
			fault_happened(lane, view, fault.page, fault.event);
	}
}

/* Under the lock: how many pages there has to be room for. A stream that fills memory quicker than it can go home waits for
 * room for a run: it would have to wait in any case, and page by page it would cost a fault each. */
static uint32_t fault_needs(const struct engine *engine, const struct region *region, uint32_t page,
			    enum page_state before)
{
	if (before != PAGE_ZERO || engine->writing < RUN_MAX || !streams_follow(&region->streams, page))
		return 1;
	return table_reserve(engine) / 2 + RUN_MAX;
}

void fault_happened(struct lane *lane, struct view *view, uint32_t page, enum page_event event)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct stream_wish wishes[STREAM_WISHES];
	struct operation *operation = NULL;
	enum page_state before;
	struct page_step step;
	struct batch batch;
	unsigned wished = 0;
	uint32_t needs;
	uint32_t slot = STANDBY_NONE;
	char *held = NULL;
	uint8_t *byte;

	pthread_mutex_lock(&engine->lock);
	engine->stats[STAT_FAULTS]++;
	byte = table_byte(engine, region, page);
	before = *byte & PAGE_STATE_MASK;
	if (*byte & PAGE_BUSY || region->closing) {
		*byte |= PAGE_NOTED;
		pthread_mutex_unlock(&engine->lock);
		return;
	}
	step = page_step(before, event);
	if ((step.action == ACTION_FETCH || step.action == ACTION_ZERO_CLEAN || step.action == ACTION_ZERO_DIRTY) &&
	    table_bounded(region) && !table_room(engine, needs = fault_needs(engine, region, page, before))) {
		defer(engine, region, page, event, needs);
		pthread_mutex_unlock(&engine->lock);
		return;
	}
	step = table_step(engine, region, page, event);
	engine->stats[STAT_FOUND] += before != PAGE_ABSENT && before != PAGE_ZERO && before < PAGE_LOST;
	if (before == PAGE_ABSENT)
		wished = streams_fault(&region->streams, page, event != EVENT_READ, FOUND_ABSENT, wishes);
	else if (before == PAGE_ZERO)
		wished = streams_fault(&region->streams, page, event != EVENT_READ, FOUND_ZERO, wishes);
	else if (before == PAGE_HELD)
		wished = streams_fault(&region->streams, page, event != EVENT_READ, FOUND_MARKER, wishes);
	else if (step.action == ACTION_WAIT && !(*byte & PAGE_NOTED) && before != PAGE_LOST)
		wished = streams_fault(&region->streams, page, event != EVENT_READ, FOUND_LATE, wishes);
	switch (step.action) {
	case ACTION_FETCH:
		operation = fetch_begin(view, page, 1);
		operation->demand = true;
		engine->demands++;
		*byte |= PAGE_NOTED;
		break;
	case ACTION_WAIT:
		engine->stats[STAT_LATE] += !(*byte & PAGE_NOTED);
		region->lost_waiting += before == PAGE_LOST && !(*byte & PAGE_NOTED);
		*byte |= PAGE_NOTED;
		break;
	case ACTION_ZERO_CLEAN:
	case ACTION_ZERO_DIRTY:
		engine->stats[STAT_ZERO]++;
		*byte |= PAGE_BUSY;
		break;
	case ACTION_CLEAN:
	case ACTION_DIRTY:
		*byte |= PAGE_BUSY;
		if (before == PAGE_STANDBY) {
			engine->stats[STAT_STANDBY_USED]++;
			slot = aside_take(engine, region, page);
			break;
		}
		engine->stats[STAT_MARKERS]++;
		held = held_take(engine, region->first + page, &(bool){true});
		break;
	case ACTION_UNPROTECT:
	case ACTION_POISON:
		*byte |= PAGE_BUSY;
		break;
	default:
		break;
	}
	pthread_mutex_unlock(&engine->lock);

	switch (step.action) {
	case ACTION_FETCH:
		fetch_send(lane, operation);
		break;
	case ACTION_ZERO_CLEAN:
	case ACTION_ZERO_DIRTY:
		install(lane, region, (struct batch){page, 1, NULL, step.action == ACTION_ZERO_CLEAN, true, before});
		break;
	case ACTION_CLEAN:
	case ACTION_DIRTY:
		batch = (struct batch){page, 1, held, step.action == ACTION_CLEAN, true, PAGE_ABSENT};
		if (slot != STANDBY_NONE) {
			install_found(lane, region, batch, slot);
			break;
		}
		install(lane, region, batch);
		buffer_put(lane, held, 1);
		break;
	case ACTION_UNPROTECT:
		memory_protect(region, page, 1, false);
		table_release(engine, region, page, 1, false, false);
		break;
	case ACTION_POISON:
		poison_pages(engine, region, &page, 1);
		break;
	case ACTION_WAKE:
		memory_wake(region, page, 1);
		break;
	default:
		break;
	}
	for (unsigned i = 0; i < wished; i++)
		prefetch(lane, view, &wishes[i]);
}
