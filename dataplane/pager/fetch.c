/* Asking stores for pages, and what becomes of what they answer. */
#include <stdlib.h>
#include <string.h>

#include "engine.h"

/* What answers in more time than this is not waited for awake. */
enum { SPIN_MAX_US = 200 };

/* One fetch of so many goes to the store that was slower, which may have got quicker. */
enum { PROBE = 256 };

/* After this part of a deadline the other store is asked without regard to how often that was done. */
enum { STUCK = 8 };

static void park(struct lane *lane, struct operation *operation)
{
	pthread_mutex_lock(&lane->engine->lock);
	TAILQ_INSERT_TAIL(&lane->parked, operation, entry);
	pthread_mutex_unlock(&lane->engine->lock);
}

/* No store that there is has what was sealed: it gave other bytes, missed these, or began anew. */
static bool hopeless(const struct operation *operation)
{
	const struct view *view = operation->view;

	for (unsigned store = 0; store < META_STORES; store++)
		if (view->stores[store].address[0] && !view->region->refused[store] &&
		    !((operation->wrong | operation->behind) & 1U << store))
			return false;
	return true;
}

static void ask(struct lane *lane, struct operation *operation, struct link *link)
{
	struct request *request = calloc(1, sizeof *request);

	if (!request)
		abort();
	request->owner = operation;
	request->buffer = buffer_get(lane, operation->count);
	request->pages = operation->count;
	request->bytes = operation_bytes(operation);
	/* A packed page of a stream waits for those that were asked for with it. */
	request->timed = operation->count == 1 && (operation->demand || request->bytes == PAGE_SIZE);
	lane->waiting += operation->demand;
	operation->pending++;
	link_send(link, request, (uint64_t)operation->page * PAGE_SIZE);
}

/* Send a fetch to the store that answers soonest of those that were not tried; without one it waits for a link. */
void fetch_send(struct lane *lane, struct operation *operation)
{
	struct view *view = operation->view;
	bool probe = operation->demand && !(++lane->fetches % PROBE);
	struct link *best = NULL;

	for (unsigned store = 0; store < META_STORES; store++) {
		struct link *link = view_link(view, store, operation->demand);

		if (!link || (operation->tried | operation->behind) & 1U << store)
			continue;
		if (!best ||
		    (view->links[store][0].pace.mean_us < view->links[!store][0].pace.mean_us) != probe)
			best = link;
	}
	if (!best) {
		operation->tried = operation->wrong;
		if (view->region->closing || hopeless(operation))
			fetch_fail(lane, operation);
		else
			park(lane, operation);
		return;
	}
	operation->asked = view_store(view, best);
	operation->hedged = false;
	if (operation->demand) {
		int64_t usual = view->links[operation->asked][0].pace.mean_us;

		hedge_sent(&lane->hedge);
		if (usual && usual < SPIN_MAX_US)
			lane->spin_us = now_us() + 2 * usual;
	}
	ask(lane, operation, best);
}

/* Whether a fault waits for one of the pages of a fetch. */
static bool wanted(struct lane *lane, const struct operation *operation)
{
	bool noted = operation->demand;

	pthread_mutex_lock(&lane->engine->lock);
	for (uint32_t i = 0; i < operation->count && !noted; i++)
		noted = *table_byte(lane->engine, operation->view->region, operation->page + i) & PAGE_NOTED;
	lane->engine->stats[STAT_HEDGED] += noted;
	pthread_mutex_unlock(&lane->engine->lock);
	return noted;
}

int64_t fetch_hedge(struct lane *lane, struct view *view, struct link *link, int64_t now)
{
	unsigned store = view_store(view, link);
	struct pace *pace = &view->links[store][0].pace;
	struct link *other = view_link(view, !store, link == &view->links[store][0]);
	int64_t late = pace_late_us(pace), next = INT64_MAX;
	struct request *request;

	if (late == INT64_MAX || !other)
		return INT64_MAX;
	TAILQ_FOREACH(request, &link->sent, entry) {
		struct operation *operation = request->owner;
		int64_t since = request->sent_us;
		bool stuck;

		/* Much is under way on the other links; they are late when nothing comes any more. */
		if (link != &view->links[store][0] && since < link->progress_us)
			since = link->progress_us;
		if (since + late > now)
			return since + late < next ? since + late : next;
		if (request->write || operation->kind != FETCH || operation->hedged || operation->answered ||
		    operation->asked != store || (operation->tried | operation->behind) & 1U << !store)
			continue;
		next = now + late;
		/* A store that is silent for so long is not merely late. */
		stuck = now - since > link->deadline_us / STUCK;
		if ((!stuck && lane->hedge.credit < HEDGE_SHARE) || !wanted(lane, operation))
			continue;
		if (!stuck)
			hedge_take(&lane->hedge);
		operation->hedged = true;
		/* What comes next had better go elsewhere. */
		if (pace->mean_us < now - since)
			pace->mean_us = now - since;
		ask(lane, operation, other);
	}
	return next;
}

struct operation *fetch_begin(struct view *view, uint32_t page, uint32_t count)
{
	struct operation *operation = operation_new(view, FETCH, page, count);

	for (uint32_t i = 0; i < count; i++) {
		operation->records[i] = *table_record(view->region, page + i);
		for (unsigned store = 0; store < META_STORES; store++)
			operation->behind |= (unsigned)table_behind(view->region, store, page + i) << store;
	}
	return operation;
}

/* The pages of a fetch do not come. */
void fetch_fail(struct lane *lane, struct operation *operation)
{
	struct engine *engine = lane->engine;
	struct view *view = operation->view;
	struct region *region = view->region;
	uint32_t poisoned[RUN_MAX], marked = 0;
	bool lost = !region->closing, wake = false;

	pthread_mutex_lock(&engine->lock);
	table_settle(engine, region, operation->page, operation->count);
	/* A store that came meanwhile was not asked. */
	for (unsigned store = 0; store < META_STORES; store++)
		lost &= view->stores[store].serial == region->meta->stores[store].serial;
	for (uint32_t i = 0; i < operation->count; i++) {
		uint32_t page = operation->page + i;
		uint8_t *byte = table_byte(engine, region, page);
		bool dropped = (*byte & PAGE_STATE_MASK) == PAGE_FETCH_DROP;
		struct page_step step = table_step(engine, region, page, lost ? EVENT_INVALID : EVENT_NOT_FETCHED);

		if (dropped)
			trim_later(engine, region, page, 1);
		wake |= step.action == ACTION_WAKE;
		if (step.next == PAGE_LOST && region->poison)
			step = table_step(engine, region, page, EVENT_POISON);
		if (step.action == ACTION_POISON) {
			*byte |= PAGE_BUSY;
			poisoned[marked++] = page;
		} else if (step.next != PAGE_LOST) {
			*byte &= PAGE_STATE_MASK;
		}
	}
	pthread_mutex_unlock(&engine->lock);
	poison_pages(engine, region, poisoned, marked);
	if (wake)
		memory_wake(region, operation->page, operation->count);
	operation_free(lane, operation);
}

/* Pages that this store does not have as they were sealed are asked for elsewhere, each by itself. */
static void ask_elsewhere(struct lane *lane, struct operation *operation, const bool *valid, unsigned store)
{
	for (uint32_t i = 0; i < operation->count; i++) {
		struct operation *again;

		if (valid[i])
			continue;
		again = operation_new(operation->view, FETCH, operation->page + i, 1);
		again->records[0] = operation->records[i];
		again->behind = operation->behind;
		again->demand = true;
		lane->engine->demands++;
		again->begun_us = operation->begun_us;
		again->wrong = operation->wrong | 1U << store;
		again->tried = again->wrong;
		fetch_send(lane, again);
	}
}

static void note_latency(struct engine *engine, int64_t took)
{
	unsigned bucket = took <= 0 ? 0 : 64 - (unsigned)__builtin_clzll((uint64_t)took);

	engine->latency[bucket < HISTOGRAM ? bucket : HISTOGRAM - 1]++;
}

/* Under the lock: say what becomes of a page that came. Installing makes it busy. */
static enum page_action arrive(struct lane *lane, struct operation *operation, uint32_t i, char *bytes)
{
	struct engine *engine = lane->engine;
	struct region *region = operation->view->region;
	uint32_t page = operation->page + i, unheld;
	uint8_t *byte = table_byte(engine, region, page);
	bool hold = i == operation->marker && *byte == PAGE_FETCH && !region->home;
	bool dropped = (*byte & PAGE_STATE_MASK) == PAGE_FETCH_DROP;
	struct page_step step = table_step(engine, region, page, hold ? EVENT_ARRIVED_HOLD : EVENT_ARRIVED);
	char *copy, *old;

	/* It was discarded while it came; its trim passed it over. */
	if (dropped)
		trim_later(engine, region, page, 1);
	if (i == operation->marker && !hold)
		engine->stats[STAT_PREFETCH_USED] += operation->guessed;
	switch (step.action) {
	case ACTION_CLEAN:
	case ACTION_DIRTY:
		*byte = (uint8_t)((*byte & PAGE_STATE_MASK) | PAGE_BUSY);
		break;
	case ACTION_HOLD:
		copy = buffer_get(lane, 1);
		memcpy(copy, bytes, PAGE_SIZE);
		unheld = held_put(engine, region->first + page, copy, operation->guessed, &old);
		if (unheld == POLICY_NONE)
			break;
		/* It may be of another region, whose table is the same one. */
		for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
			struct region *owner = engine->regions[slot];

			if (owner && unheld >= owner->first && unheld < owner->first + owner->pages) {
				table_step(engine, owner, unheld - owner->first, EVENT_UNHOLD);
				streams_unused(&owner->streams, unheld - owner->first);
			}
		}
		engine->stats[STAT_UNUSED]++;
		buffer_put(lane, old, 1);
		break;
	case ACTION_WAKE:
		*byte &= PAGE_STATE_MASK;
		break;
	default:
		break;
	}
	return step.action;
}

/* Make a page of what a store gave for it; false: it is not what was sealed. */
static bool open_page(struct lane *lane, const struct operation *operation, uint32_t i, char *bytes)
{
	const struct seal_record *record = &operation->records[i];

	if (!seal_unseal(&operation->view->seal, operation->page + i, record, bytes))
		return false;
	if (!record->saved)
		return true;
	if (!unpack_page(&lane->pack, bytes, seal_length(record), lane->page))
		return false;
	memcpy(bytes, lane->page, PAGE_SIZE);
	return true;
}

void fetch_answered(struct lane *lane, struct request *request)
{
	struct operation *operation = request->owner;
	struct engine *engine = lane->engine;
	struct view *view = operation->view;
	struct region *region = view->region;
	unsigned store = view_store(view, request->link);
	enum page_action actions[RUN_MAX];
	bool valid[RUN_MAX], all = true;
	char *buffer = request->buffer;
	bool failed = request->failed;

	free(request);
	lane->waiting -= operation->demand;
	operation->pending--;
	if (operation->answered) {
		buffer_put(lane, buffer, operation->count);
		if (!operation->pending)
			operation_free(lane, operation);
		return;
	}
	if (failed) {
		buffer_put(lane, buffer, operation->count);
		pthread_mutex_lock(&engine->lock);
		engine->stats[STAT_RETRIED]++;
		pthread_mutex_unlock(&engine->lock);
		operation->tried |= 1U << store;
		if (!operation->pending)
			fetch_send(lane, operation);
		return;
	}
	for (uint32_t i = 0; i < operation->count; i++) {
		valid[i] = open_page(lane, operation, i, buffer + (size_t)i * PAGE_SIZE);
		all &= valid[i];
	}
	if (!all && operation->pending) {
		/* The other store was asked as well. */
		buffer_put(lane, buffer, operation->count);
		pthread_mutex_lock(&engine->lock);
		engine->stats[STAT_INVALID]++;
		pthread_mutex_unlock(&engine->lock);
		operation->tried |= 1U << store;
		if (operation->count == 1)
			operation->wrong |= 1U << store;
		return;
	}
	pthread_mutex_lock(&engine->lock);
	table_settle(engine, region, operation->page, operation->count);
	for (uint32_t i = 0; i < operation->count; i++) {
		engine->stats[valid[i] ? STAT_FETCHED : STAT_INVALID]++;
		/* Others gave other bytes: they get these. */
		for (unsigned other = 0; valid[i] && other < META_STORES; other++)
			if (operation->wrong & 1U << other)
				table_note_behind(region, other, operation->page + i, true);
		actions[i] = valid[i] ? arrive(lane, operation, i, buffer + (size_t)i * PAGE_SIZE) : ACTION_NONE;
	}
	engine->stats[STAT_HEDGE_WON] += operation->hedged && store != operation->asked;
	if (operation->demand)
		note_latency(engine, now_us() - operation->begun_us);
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0, run; i < operation->count; i += run) {
		for (run = 1; i + run < operation->count && actions[i + run] == actions[i]; run++)
			;
		if (actions[i] == ACTION_CLEAN || actions[i] == ACTION_DIRTY)
			install(lane, region,
				(struct batch){operation->page + i, run, buffer + (size_t)i * PAGE_SIZE,
					       actions[i] == ACTION_CLEAN, operation->demand, PAGE_ABSENT});
		else if (actions[i] == ACTION_WAKE)
			memory_wake(region, operation->page + i, run);
	}
	buffer_put(lane, buffer, operation->count);
	if (!all)
		ask_elsewhere(lane, operation, valid, store);
	operation->answered = true;
	engine->demands -= operation->demand;
	if (!operation->pending)
		operation_free(lane, operation);
}
