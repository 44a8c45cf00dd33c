#include <stdio.h>
#include <stdlib.h>

#include "engine.h"

uint8_t *table_byte(struct engine *engine, const struct region *region, uint32_t page)
{
	return &engine->states[region->first + page];
}

enum page_state table_state(const struct engine *engine, const struct region *region, uint32_t page)
{
	return engine->states[region->first + page] & PAGE_STATE_MASK;
}

struct seal_record *table_record(const struct region *region, uint32_t page)
{
	return &meta_records(region->meta)[page];
}

/* Whether a page in this state has, or will have, memory of this host. */
static bool charges(enum page_state state)
{
	return page_resident(state) || state == PAGE_FETCH || state == PAGE_FETCH_WRITE || state == PAGE_FETCH_DROP ||
	       state == PAGE_HELD || state == PAGE_STANDBY || state == PAGE_HEAL;
}

void table_set(struct engine *engine, struct region *region, uint32_t page, enum page_state state)
{
	uint8_t *byte = table_byte(engine, region, page);
	enum page_state before = *byte & PAGE_STATE_MASK;

	engine->counts[before]--;
	engine->counts[state]++;
	if (!region->home) {
		engine->charged += charges(state);
		engine->charged -= charges(before);
		engine->aside += state == PAGE_STANDBY;
		engine->aside -= before == PAGE_STANDBY;
		engine->writing += state == PAGE_WRITE;
		engine->writing -= before == PAGE_WRITE;
	}
	region->counts[before]--;
	region->counts[state]++;
	if (*byte & PAGE_NOTED) {
		region->lost_waiting += state == PAGE_LOST;
		region->lost_waiting -= before == PAGE_LOST;
	}
	if (state == PAGE_POISONED)
		table_note_poisoned(region, page, true);
	*byte = (uint8_t)((*byte & ~PAGE_STATE_MASK) | state);
	/* What comes takes the place of what left first. */
	if (charges(state) && !charges(before))
		aside_shrink(engine);
}

struct page_step table_step(struct engine *engine, struct region *region, uint32_t page, enum page_event event)
{
	enum page_state state = table_state(engine, region, page);
	struct page_step step = page_step(state, event);

	if (step.action == ACTION_ILLEGAL) {
		fprintf(stderr, "vmcoal-pager: %s page %u: %s with event %d\n", region->id, page,
			page_state_name(state), event);
		abort();
	}
	table_set(engine, region, page, step.next);
	return step;
}

bool table_joins(const struct region *region, uint32_t page)
{
	return !table_record(region, page)->saved;
}

void table_release(struct engine *engine, struct region *region, uint32_t page, uint32_t count, bool insert,
		   bool demand)
{
	uint32_t first = 0, last = 0;
	bool noted = false;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *byte = table_byte(engine, region, page + i);

		if (*byte & PAGE_NOTED) {
			first = noted ? first : i;
			last = i;
			noted = true;
		}
		*byte &= PAGE_STATE_MASK;
		/* Noted until it is done: a pager that dies before may leave a mark. */
		if (region->meta->poisoned && *byte != PAGE_POISONED && *byte != PAGE_HEAL)
			table_note_poisoned(region, page + i, false);
		if (*byte == PAGE_STANDBY)
			aside_list(engine, region, page + i);
		if (insert && page_resident(*byte) && !region->home)
			policy_insert(&engine->policy, region->first + page + i, demand);
	}
	if (engine->waiters)
		pthread_cond_broadcast(&engine->idle);
	pthread_mutex_unlock(&engine->lock);
	if (noted)
		memory_wake(region, page + first, last - first + 1);
}

void table_settle(struct engine *engine, struct region *region, uint32_t page, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (*table_byte(engine, region, page + i) & PAGE_BUSY) {
			engine->waiters++;
			pthread_cond_wait(&engine->idle, &engine->lock);
			engine->waiters--;
			i = UINT32_MAX; /* from the beginning: another one may be busy by now */
		}
}

bool table_behind(const struct region *region, unsigned store, uint32_t page)
{
	return meta_marking(region->meta, store) || meta_behind(region->meta, store)[page / 64] >> page % 64 & 1;
}

void table_note_behind(struct region *region, unsigned store, uint32_t page, bool behind)
{
	uint64_t *word = &meta_behind(region->meta, store)[page / 64], bit = 1ULL << page % 64;

	if (!(*word & bit) == !behind)
		return;
	*word ^= bit;
	if (behind)
		region->meta->behind_count[store]++;
	else
		region->meta->behind_count[store]--;
}

bool table_poisoned(const struct region *region, uint32_t page)
{
	return meta_poisoned(region->meta)[page / 64] >> page % 64 & 1;
}

void table_note_poisoned(struct region *region, uint32_t page, bool poisoned)
{
	uint64_t *word = &meta_poisoned(region->meta)[page / 64], bit = 1ULL << page % 64;

	if (!(*word & bit) == !poisoned)
		return;
	*word ^= bit;
	if (poisoned)
		region->meta->poisoned++;
	else
		region->meta->poisoned--;
}

uint32_t table_reserve(const struct engine *engine)
{
	uint32_t reserve = engine->budget / 16;

	return reserve < 16 ? 16 : reserve > 4096 ? 4096 : reserve;
}

bool table_bounded(const struct region *region)
{
	bool stores = false;

	for (unsigned store = 0; store < META_STORES; store++)
		stores |= region->meta->stores[store].address[0] && !region->refused[store];
	return stores && !region->home;
}

uint32_t table_kept(const struct engine *engine)
{
	return engine->charged - engine->standby.listed;
}

bool table_room(const struct engine *engine, uint32_t pages)
{
	return table_kept(engine) + pages <= engine->budget;
}

uint32_t table_charged(const struct region *region)
{
	uint64_t charged = 0;

	for (enum page_state state = 0; state < PAGE_STATES; state++)
		charged += charges(state) ? region->counts[state] : 0;
	return (uint32_t)charged;
}

uint64_t table_away(const struct region *region)
{
	const uint64_t *counts = region->counts;

	return counts[PAGE_ABSENT] + counts[PAGE_FETCH] + counts[PAGE_FETCH_WRITE] + counts[PAGE_HELD] +
	       counts[PAGE_STANDBY] + table_lost(region);
}

uint64_t table_lost(const struct region *region)
{
	return region->counts[PAGE_LOST] + region->counts[PAGE_POISONED] + region->counts[PAGE_HEAL];
}

uint64_t table_here(const struct region *region)
{
	uint64_t here = 0;

	for (enum page_state state = 0; state < PAGE_STATES; state++)
		here += page_resident(state) ? region->counts[state] : 0;
	return here;
}

uint64_t table_waiting(const struct engine *engine, const struct region *region)
{
	uint64_t waiting = region->lost_waiting;

	for (unsigned i = 0; i < engine->lane_count; i++) {
		const struct operation *operation;

		TAILQ_FOREACH (operation, &engine->lanes[i]->parked, entry)
			for (uint32_t page = 0; operation->view->region == region && page < operation->count; page++)
				waiting += (engine->states[region->first + operation->page + page] & PAGE_NOTED) != 0;
	}
	return waiting;
}

bool table_room_ahead(struct engine *engine)
{
	bool room = table_kept(engine) + table_reserve(engine) / 2 < engine->budget;

	engine->short_of_room |= !room;
	return room;
}

char *held_take(struct engine *engine, uint32_t id, const bool *used)
{
	for (unsigned i = 0; i < HELD_MAX; i++)
		if (engine->held[i].bytes && engine->held[i].page == id) {
			char *bytes = engine->held[i].bytes;

			engine->held[i].bytes = NULL;
			if (used)
				engine->stats[*used ? STAT_PREFETCH_USED : STAT_PREFETCH_WASTED] +=
					engine->held[i].guessed;
			return bytes;
		}
	return NULL;
}

uint32_t held_put(struct engine *engine, uint32_t id, char *bytes, uint32_t guessed, char **old)
{
	unsigned room = engine->budget / 16 < HELD_MAX ? engine->budget / 16 + 1 : HELD_MAX;
	unsigned at = engine->held_next++ % room;
	uint32_t page = engine->held[at].bytes ? engine->held[at].page : POLICY_NONE;

	*old = engine->held[at].bytes;
	if (*old)
		engine->stats[STAT_PREFETCH_WASTED] += engine->held[at].guessed;
	engine->held[at].guessed = guessed;
	engine->held[at].page = id;
	engine->held[at].bytes = bytes;
	return page;
}
