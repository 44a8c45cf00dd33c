/* The way of a page out of the memory: dropped at once where home has it, sealed and stored first where not. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { VICTIMS = 256, VICTIMS_SINGLE = 16, RUN_PAYS = 4, STORING_MAX = 32 << 20, BLOCKED_US = 50000, RESYNC_US = 5000, TRIM_RUNS = 64 };

struct victim {
	struct view *view;
	uint32_t page;
	bool aside; /* it goes on standby */
};

static int by_place(const void *left, const void *right)
{
	const struct victim *a = left, *b = right;

	if (a->view != b->view)
		return a->view < b->view ? -1 : 1;
	return a->page < b->page ? -1 : a->page > b->page;
}

/* How many of the first victims are pages in a row, at most `most`. */
static uint32_t run_of(const struct victim *victims, uint32_t count, uint32_t most)
{
	uint32_t run = 1;

	while (run < count && run < most && victims[run].view == victims->view &&
	       victims[run].page == victims->page + run && victims[run].aside == victims->aside)
		run++;
	return run;
}

/* The link to write to, or NULL where the store cannot take anything now. */
static struct link *writable(struct lane *lane, struct view *view, unsigned store, int64_t now)
{
	struct link *link = view_link(view, store, false);

	return link && view->region->hold_us[store] <= now && lane->storing < STORING_MAX ? link : NULL;
}

/* Under the lock: whether a page that was not changed may go: a store has it, if possible one that is linked now. */
static bool droppable(const struct region *region, uint32_t page)
{
	bool kept = false, elsewhere = false;

	if (!table_record(region, page)->version)
		return true;
	for (unsigned store = 0; store < META_STORES; store++) {
		if (!region->meta->stores[store].address[0])
			continue;
		if (table_behind(region, store, page)) {
			elsewhere |= region->ready[store] != 0;
		} else {
			if (region->ready[store])
				return true;
			kept = true;
		}
	}
	return kept && !elsewhere;
}

/* Under the lock: whether a store still is the one that this lane wrote to. */
static bool same_store(const struct view *view, unsigned store)
{
	return view->stores[store].serial == view->region->meta->stores[store].serial;
}

/* Returns how many runs they were. */
static uint32_t drop(struct lane *lane, const struct victim *victims, uint32_t count)
{
	uint32_t runs = 0;

	for (uint32_t run; count; victims += run, count -= run, runs++) {
		run = run_of(victims, count, VICTIMS);
		pages_leave(lane->engine, victims->view->region, victims->page, run, victims->aside);
	}
	return runs;
}

/* Pages that are all zeros: no store needs to have them. They are dropped. */
static void drop_zeros(struct lane *lane, struct view *view, uint32_t page, uint32_t count)
{
	struct engine *engine = lane->engine;
	bool stored = false;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < count; i++) {
		table_step(engine, view->region, page + i, EVENT_IS_ZERO);
		stored |= table_record(view->region, page + i)->version != 0;
		table_record(view->region, page + i)->version = 0;
		for (unsigned store = 0; store < META_STORES; store++)
			table_note_behind(view->region, store, page + i, false);
	}
	engine->stats[STAT_STORED_ZERO] += count;
	if (stored)
		trim_later(engine, view->region, page, count);
	pthread_mutex_unlock(&engine->lock);
	memory_drop(view->region, page, count);
	table_release(engine, view->region, page, count, false, false);
}

/* Every store has answered or failed. */
static void finish(struct lane *lane, struct operation *operation)
{
	struct engine *engine = lane->engine;
	struct region *region = operation->view->region;
	enum page_action actions[RUN_MAX];

	pthread_mutex_lock(&engine->lock);
	table_settle(engine, region, operation->page, operation->count);
	for (unsigned store = 0; store < META_STORES; store++)
		if (!same_store(operation->view, store))
			operation->stored &= ~(1U << store);
	for (uint32_t i = 0; i < operation->count; i++) {
		uint32_t page = operation->page + i;
		/* What is to stay here counts as not stored. */
		bool stored = operation->stored && (!region->home || operation->trim);
		enum page_state before = table_state(engine, region, page);
		bool aside = stored && before == PAGE_WRITE && aside_get(engine, region, page);
		struct page_step step = table_step(engine, region, page,
						   aside    ? EVENT_STORED_STANDBY
						   : stored ? EVENT_STORED
							    : EVENT_NOT_STORED);

		/* It was discarded while it was written; its trim passed it over. */
		if (before == PAGE_WRITE_DROP && operation->stored && !operation->trim)
			trim_later(engine, region, page, 1);
		actions[i] = step.action;
		switch (step.action) {
		case ACTION_COMMIT_DROP:
		case ACTION_COMMIT_KEEP:
			engine->stats[STAT_DROPPED]++;
			/* fall through */
		case ACTION_COMMIT:
			*table_record(region, page) = operation->records[i];
			for (unsigned store = 0; store < META_STORES; store++)
				table_note_behind(region, store, page,
						  !operation->trim && region->meta->stores[store].address[0] &&
							  !(operation->stored & 1U << store));
			break;
		default:
			break;
		}
		if (step.action == ACTION_COMMIT_DROP || step.action == ACTION_COMMIT_KEEP ||
		    step.action == ACTION_UNPROTECT)
			*table_byte(engine, region, page) |= PAGE_BUSY;
		else if (step.next == PAGE_DIRTY && !region->home)
			policy_return(&engine->policy, region->first + page);
	}
	if (operation->stored)
		engine->stats[operation->trim ? STAT_TRIMMED : STAT_STORED] += operation->count;
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0, run; i < operation->count; i += run) {
		for (run = 1; i + run < operation->count && actions[i + run] == actions[i]; run++)
			;
		if (actions[i] == ACTION_COMMIT_DROP || actions[i] == ACTION_COMMIT_KEEP) {
			pages_leave(engine, region, operation->page + i, run, actions[i] == ACTION_COMMIT_KEEP);
		} else if (actions[i] == ACTION_UNPROTECT) {
			memory_protect(region, operation->page + i, run, false);
			table_release(engine, region, operation->page + i, run, true, false);
		}
	}
	lane->storing -= (uint64_t)operation->count * PAGE_SIZE;
	lane->evict_us = operation->stored ? 0 : now_us() + BLOCKED_US;
	operation_free(lane, operation);
}

void store_answered(struct lane *lane, struct request *request)
{
	struct operation *operation = request->owner;

	if (!request->failed)
		operation->stored |= 1U << view_store(operation->view, request->link);
	free(request);
	if (!--operation->pending)
		finish(lane, operation);
}

/* Send sealed pages to every store that can take them. */
static void store_send(struct lane *lane, struct operation *operation)
{
	struct view *view = operation->view;
	struct link *links[META_STORES];
	int64_t now = now_us();

	pthread_mutex_lock(&lane->engine->lock);
	for (unsigned store = 0; store < META_STORES; store++) {
		links[store] = writable(lane, view, store, now);
		if (limbo_has(view->region, store, operation->page, operation->count))
			links[store] = NULL;
	}
	pthread_mutex_unlock(&lane->engine->lock);
	lane->storing += (uint64_t)operation->count * PAGE_SIZE;
	operation->pending = 1;
	for (unsigned store = 0; store < META_STORES; store++) {
		struct request *request;

		if (!links[store])
			continue;
		request = calloc(1, sizeof *request);
		if (!request)
			abort();
		request->owner = operation;
		request->write = true;
		request->trim = operation->trim;
		request->buffer = operation->buffer;
		request->pages = operation->count;
		request->bytes = operation_bytes(operation);
		operation->pending++;
		link_send(links[store], request, (uint64_t)operation->page * PAGE_SIZE);
	}
	if (!--operation->pending)
		finish(lane, operation);
}

void trim_later(struct engine *engine, struct region *region, uint32_t page, uint32_t count)
{
	struct extent *last = engine->trim_count ? &engine->trims[engine->trim_count - 1] : NULL;

	if (last && last->region == region && last->page + last->count == page) {
		last->count += count;
		return;
	}
	if (engine->trim_count == engine->trim_room) {
		engine->trim_room = engine->trim_room ? engine->trim_room * 2 : 64;
		engine->trims = realloc(engine->trims, engine->trim_room * sizeof *engine->trims);
		if (!engine->trims)
			abort();
	}
	engine->trims[engine->trim_count++] = (struct extent){region, page, count};
}

/* What a store keeps of a page that is zeros is harmless, so a trim that cannot be sent now is not sent later: but for
 * pages on their way, which are noted when they have arrived. */
void trim(struct lane *lane)
{
	struct engine *engine = lane->engine;

	while (!lane->number && lane->storing < STORING_MAX) {
		/* More would not be sent. */
		int64_t room = STORING_MAX - (int64_t)lane->storing;
		struct operation *operations[TRIM_RUNS];
		unsigned count = 0;
		struct extent *extent;
		struct view *view;

		pthread_mutex_lock(&engine->lock);
		if (!engine->trim_count) {
			pthread_mutex_unlock(&engine->lock);
			return;
		}
		extent = &engine->trims[engine->trim_count - 1];
		view = lane->views[extent->region->slot];
		while (extent->count && count < TRIM_RUNS && room > 0) {
			uint32_t run = 0;

			while (view && run < extent->count && run < RUN_MAX &&
			       *table_byte(engine, extent->region, extent->page + run) == PAGE_ZERO)
				table_step(engine, extent->region, extent->page + run++, EVENT_TRIM);
			if (run) {
				operations[count] = operation_new(view, STORE, extent->page, run);
				operations[count++]->trim = true;
				room -= (int64_t)run * PAGE_SIZE;
			} else {
				run = 1;
			}
			extent->page += run;
			extent->count -= run;
		}
		if (!extent->count)
			engine->trim_count--;
		pthread_mutex_unlock(&engine->lock);
		for (unsigned i = 0; i < count; i++)
			store_send(lane, operations[i]);
	}
}

/* Pages that cannot be read stay where they are. */
static void keep(struct lane *lane, struct view *view, uint32_t page, uint32_t count)
{
	table_release(lane->engine, view->region, page, count, false, false);
	lane->storing += (uint64_t)count * PAGE_SIZE;
	finish(lane, operation_new(view, STORE, page, count));
}

/* Replace a page by what it is packed into, where that pays. Returns its length; 0: it is zeros. */
static uint32_t pack(struct lane *lane, const struct region *region, char *bytes)
{
	uint32_t length;

	if (page_is_zero(bytes))
		return 0;
	length = region->pack ? pack_page(&lane->pack, bytes, lane->page) : 0;
	if (length)
		memcpy(bytes, lane->page, length);
	return length ? length : PAGE_SIZE;
}

/* Seal a run of pages, which are busy and on their way home, and send it. */
static void store(struct lane *lane, struct view *view, uint32_t page, uint32_t count)
{
	struct region *region = view->region;
	uint32_t lengths[RUN_MAX];

	memory_protect(region, page, count, true);
	if (!memory_read(region, page, count, lane->scratch)) {
		keep(lane, view, page, count);
		return;
	}
	for (uint32_t i = 0; i < count; i++)
		lengths[i] = pack(lane, region, lane->scratch + (size_t)i * PAGE_SIZE);
	for (uint32_t i = 0, run; i < count; i += run) {
		struct operation *operation;
		uint64_t version;

		/* Zeros, or pages in full of which the last one may be packed. */
		for (run = 1; i + run < count && (lengths[i] ? lengths[i + run] && lengths[i + run - 1] == PAGE_SIZE
							     : !lengths[i + run]); run++)
			;
		if (!lengths[i]) {
			drop_zeros(lane, view, page + i, run);
			continue;
		}
		operation = operation_new(view, STORE, page + i, run);
		operation->buffer = buffer_get(lane, run);
		version = atomic_fetch_add(&region->meta->seals, run) + 1;
		for (uint32_t n = 0; n < run; n++)
			if (!seal_page(&view->seal, page + i + n, version + n,
				       lane->scratch + (size_t)(i + n) * PAGE_SIZE, lengths[i + n], operation->buffer + (size_t)n * PAGE_SIZE, &operation->records[n]))
				abort();
		table_release(lane->engine, region, page + i, run, false, false);
		store_send(lane, operation);
	}
}

static struct view *view_of(struct lane *lane, uint32_t id)
{
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct view *view = lane->views[slot];

		if (view && id >= view->region->first && id < view->region->first + view->region->pages)
			return view;
	}
	return NULL;
}

/* Under the lock: whether a page can be written to any store now. */
static bool anywhere(struct lane *lane, struct view *view, uint32_t page, int64_t now)
{
	for (unsigned store = 0; store < META_STORES; store++)
		if (writable(lane, view, store, now) && !limbo_has(view->region, store, page, 1))
			return true;
	return false;
}

/* Under the lock: how many pages that are neither on their way home nor on standby may be here. Write-back goes as deep
 * as keeps room for what comes: deeper where room was short although everything that may be written was, shallower with time. */
static uint32_t evict_goal(struct engine *engine, uint32_t wanted)
{
	uint32_t reserve = table_reserve(engine), aside = aside_limit(engine);
	uint32_t goal = engine->budget - (aside > reserve ? aside : reserve);

	if (engine->short_of_room && engine->writing && engine->writing * 2 >= engine->depth)
		engine->depth = engine->depth ? engine->depth * 2 : reserve;
	engine->short_of_room = false;
	if (engine->depth > engine->budget / 2)
		engine->depth = engine->budget / 2;
	wanted += engine->depth;
	return goal - (wanted < goal * 3 / 4 ? wanted : goal * 3 / 4);
}

void evict(struct lane *lane, uint32_t wanted)
{
	struct engine *engine = lane->engine;
	struct victim drops[VICTIMS], stores[VICTIMS];
	uint32_t returned[VICTIMS], dropped = 0, stored = 0, kept = 0, unprotected = 0, goal, want, runs;
	struct victim changed[VICTIMS];
	int64_t now;

	aside_cool(engine);
	for (;;) {
		pthread_mutex_lock(&engine->lock);
		goal = evict_goal(engine, wanted);
		want = engine->charged - engine->writing - engine->aside;
		if (want <= goal || engine->ending) {
			pthread_mutex_unlock(&engine->lock);
			return;
		}
		now = now_us();
		if (now < lane->evict_us) {
			if (lane->evict_us < lane->next_us)
				lane->next_us = lane->evict_us;
			pthread_mutex_unlock(&engine->lock);
			return;
		}
		/* Quickly while nothing is on its way home, for who only reads has no use of a smaller cache. */
		engine->depth -= (engine->depth + 15) / (engine->writing ? 256 : 16);
		/* A little more than needed, so that it pays. */
		want = want - goal + table_reserve(engine) / 4;
		dropped = stored = kept = unprotected = 0;
		while (dropped + stored < want && dropped + stored + kept + unprotected < lane->batch) {
			uint32_t id = policy_victim(&engine->policy);
			struct view *view = id == POLICY_NONE ? NULL : view_of(lane, id);
			uint8_t *byte = &engine->states[id & POLICY_NONE];

			if (id == POLICY_NONE)
				break;
			if (view && view->region->home)
				continue;
			if (view && !view->region->closing && *byte == PAGE_CLEAN &&
			    !droppable(view->region, id - view->region->first)) {
				/* Another store is to have it first. */
				table_step(engine, view->region, id - view->region->first, EVENT_PROTECT);
				*byte |= PAGE_BUSY;
				changed[unprotected++] = (struct victim){view, id - view->region->first, false};
			} else if (view && !view->region->closing && *byte == PAGE_CLEAN) {
				uint32_t page = id - view->region->first;

				bool known = table_record(view->region, page)->version != 0;
				bool aside = known && aside_get(engine, view->region, page);

				table_step(engine, view->region, page,
					   aside   ? EVENT_STANDBY
					   : known ? EVENT_EVICT
						   : EVENT_EVICT_ZERO);
				*byte |= PAGE_BUSY;
				drops[dropped++] = (struct victim){view, page, aside};
			} else if (view && !view->region->closing && *byte == PAGE_DIRTY &&
				   anywhere(lane, view, id - view->region->first, now)) {
				uint32_t page = id - view->region->first;

				table_step(engine, view->region, page, EVENT_EVICT);
				*byte |= PAGE_BUSY;
				stores[stored++] = (struct victim){view, page, false};
			} else {
				returned[kept++] = id;
			}
		}
		for (uint32_t i = 0; i < kept; i++)
			if (page_resident(engine->states[returned[i]] & PAGE_STATE_MASK))
				policy_return(&engine->policy, returned[i]);
		engine->stats[STAT_DROPPED] += dropped;
		pthread_mutex_unlock(&engine->lock);
		qsort(drops, dropped, sizeof *drops, by_place);
		qsort(stores, stored, sizeof *stores, by_place);
		for (uint32_t i = 0; i < unprotected; i++) {
			memory_protect(changed[i].view->region, changed[i].page, 1, false);
			table_release(engine, changed[i].view->region, changed[i].page, 1, true, false);
		}
		runs = drop(lane, drops, dropped);
		for (uint32_t i = 0, run; i < stored; i += run, runs++) {
			run = run_of(stores + i, stored - i, RUN_MAX);
			store(lane, stores[i].view, stores[i].page, run);
		}
		/* Pages that lie anywhere take long each, and a fault may come. */
		lane->batch = dropped + stored < runs * RUN_PAYS ? VICTIMS_SINGLE : VICTIMS;
		if (!dropped && !stored && !unprotected) {
			lane->evict_us = now + BLOCKED_US;
			if (lane->evict_us < lane->next_us)
				lane->next_us = lane->evict_us;
			return;
		}
		if (lane->batch == VICTIMS_SINGLE && !wanted) {
			lane->next_us = 0;
			return;
		}
	}
}

/* One step for one region: pages that `behind` misses are brought here as modified, and those that are here stored. */
static void resync_region(struct lane *lane, struct view *view, unsigned behind, int64_t now)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct operation *operations[VICTIMS];
	struct victim stores[VICTIMS];
	uint32_t stored = 0, fetched = 0, unprotected[VICTIMS], written = 0, found[VICTIMS], slots[VICTIMS], returned = 0, page;

	pthread_mutex_lock(&engine->lock);
	page = region->resync[behind];
	for (uint32_t looked = 0; looked < region->pages && stored + fetched + written + returned < VICTIMS; looked++) {
		uint8_t *byte;

		/* Words without a bit are passed by quickly. */
		if (!(page % 64) && !meta_behind(region->meta, behind)[page / 64]) {
			page = page + 64 < region->pages ? page + 64 : 0;
			looked += 63;
			continue;
		}
		byte = table_byte(engine, region, page);
		if (!table_behind(region, behind, page) || limbo_has(region, behind, page, 1)) {
			;
		} else if (*byte == PAGE_ABSENT && table_room_ahead(engine)) {
			table_step(engine, region, page, EVENT_WRITE);
			operations[fetched++] = fetch_begin(view, page, 1);
		} else if (*byte == PAGE_HELD) {
			free(held_take(engine, region->first + page, NULL));
			table_step(engine, region, page, EVENT_UNHOLD);
		} else if (*byte == PAGE_STANDBY) {
			/* Perhaps no store has it any more. */
			table_step(engine, region, page, EVENT_WRITE);
			*byte |= PAGE_BUSY;
			found[returned] = page;
			slots[returned++] = aside_take(engine, region, page);
		} else if (*byte == PAGE_CLEAN) {
			table_step(engine, region, page, EVENT_PROTECT);
			*byte |= PAGE_BUSY;
			unprotected[written++] = page;
		} else if (*byte == PAGE_DIRTY && anywhere(lane, view, page, now)) {
			policy_forget(&engine->policy, region->first + page);
			table_step(engine, region, page, EVENT_EVICT);
			*byte |= PAGE_BUSY;
			stores[stored++] = (struct victim){view, page, false};
			engine->stats[STAT_RESYNCED]++;
		}
		page = page + 1 < region->pages ? page + 1 : 0;
	}
	region->resync[behind] = page;
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0; i < written; i++) {
		memory_protect(region, unprotected[i], 1, false);
		table_release(engine, region, unprotected[i], 1, false, false);
	}
	for (uint32_t i = 0; i < returned; i++)
		install_found(lane, region, (struct batch){found[i], 1, NULL, false, false, PAGE_ABSENT}, slots[i]);
	for (uint32_t i = 0; i < fetched; i++)
		fetch_send(lane, operations[i]);
	qsort(stores, stored, sizeof *stores, by_place);
	for (uint32_t i = 0, run; i < stored; i += run) {
		run = run_of(stores + i, stored - i, RUN_MAX);
		store(lane, view, stores[i].page, run);
	}
}

void resync(struct lane *lane)
{
	int64_t now = now_us();

	if (lane->number)
		return;
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++)
		for (unsigned behind = 0; lane->views[slot] && behind < META_STORES; behind++) {
			struct view *view = lane->views[slot];

			if (!view->region->meta->behind_count[behind] || view->region->closing || view->region->home ||
			    view->region->faults < 0)
				continue;
			if (now >= lane->resync_us && view_link(view, behind, false))
				resync_region(lane, view, behind, now);
			if (now + RESYNC_US < lane->next_us)
				lane->next_us = now + RESYNC_US;
		}
	if (now >= lane->resync_us)
		lane->resync_us = now + RESYNC_US;
}
