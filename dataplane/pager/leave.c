/* How pages leave the guest's memory: dropped, or set aside on standby for a while (standby.h). */
#include <stdlib.h>

#include "engine.h"

enum { IDLE_MAX = 64 };

static struct region *region_of(struct engine *engine, uint32_t id)
{
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct region *region = engine->regions[slot];

		if (region && id >= region->first && id < region->first + region->pages)
			return region;
	}
	abort();
}

/* Under the lock: the oldest page on standby is not here any more. */
static bool give_up_oldest(struct engine *engine)
{
	uint32_t slot = standby_oldest(&engine->standby), id;
	struct region *region;

	if (slot == STANDBY_NONE)
		return false;
	id = engine->standby.slots[slot].page;
	region = region_of(engine, id);
	aside_give_up(engine, region, id - region->first);
	return true;
}

uint32_t aside_limit(const struct engine *engine)
{
	uint32_t limit = engine->budget / ASIDE_SHARE > ASIDE_MIN ? engine->budget / ASIDE_SHARE : ASIDE_MIN;

	return limit < engine->standby.room ? limit : engine->standby.room;
}

void aside_resize(struct engine *engine)
{
	engine->standby.limit = aside_limit(engine);
	while (engine->standby.used > engine->standby.limit && give_up_oldest(engine))
		;
}

void aside_shrink(struct engine *engine)
{
	while (engine->charged > engine->budget && give_up_oldest(engine))
		;
}

bool aside_get(struct engine *engine, const struct region *region, uint32_t page)
{
	uint32_t id = region->first + page, slot;

	/* What was fetched ahead passes through, most of it as a stream that is used once, and shall not cost a copy. */
	if (region->home || region->closing || !policy_asked(&engine->policy, id))
		return false;
	slot = standby_get(&engine->standby);
	if (slot == STANDBY_NONE && give_up_oldest(engine))
		slot = standby_get(&engine->standby);
	if (slot == STANDBY_NONE)
		return false;
	policy_note(&engine->policy, id, slot);
	engine->stats[STAT_STANDBY]++;
	return true;
}

void aside_list(struct engine *engine, struct region *region, uint32_t page)
{
	uint32_t id = region->first + page, slot = policy_noted(&engine->policy, id);

	if (!region->home) {
		standby_list(&engine->standby, slot, id);
		return;
	}
	/* It came home meanwhile, where nothing is on standby. */
	table_step(engine, region, page, EVENT_UNHOLD);
	standby_free(&engine->standby, slot);
}

uint32_t aside_take(struct engine *engine, const struct region *region, uint32_t page)
{
	uint32_t slot = policy_noted(&engine->policy, region->first + page);

	standby_take(&engine->standby, slot);
	return slot;
}

void aside_give_up(struct engine *engine, struct region *region, uint32_t page)
{
	standby_free(&engine->standby, aside_take(engine, region, page));
	table_step(engine, region, page, EVENT_UNHOLD);
}

void aside_give_up_all(struct engine *engine, struct region *region)
{
	uint32_t slot = standby_oldest(&engine->standby), next;

	for (; slot != STANDBY_NONE; slot = next) {
		uint32_t id = engine->standby.slots[slot].page;

		next = engine->standby.slots[slot].newer;
		if (id >= region->first && id < region->first + region->pages)
			aside_give_up(engine, region, id - region->first);
	}
}

/* Of pages in a row that are to be on standby, take the bytes out of the memory. */
static void set_aside(struct engine *engine, struct region *region, uint32_t page, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t slot = policy_noted(&engine->policy, region->first + page + i);

		if (memory_read(region, page + i, 1, standby_bytes(&engine->standby, slot)))
			continue;
		pthread_mutex_lock(&engine->lock);
		table_step(engine, region, page + i, EVENT_UNHOLD);
		standby_free(&engine->standby, slot);
		pthread_mutex_unlock(&engine->lock);
	}
}

void pages_leave(struct engine *engine, struct region *region, uint32_t page, uint32_t count, bool aside)
{
	if (aside)
		set_aside(engine, region, page, count);
	memory_drop(region, page, count);
	table_release(engine, region, page, count, false, false);
}

void aside_cool(struct engine *engine)
{
	uint32_t slots[IDLE_MAX], count;

	do {
		pthread_mutex_lock(&engine->lock);
		count = standby_idle(&engine->standby, slots, IDLE_MAX);
		pthread_mutex_unlock(&engine->lock);
		if (!count)
			return;
		standby_cool(&engine->standby, slots, count);
		pthread_mutex_lock(&engine->lock);
		standby_cooled(&engine->standby, slots, count);
		pthread_mutex_unlock(&engine->lock);
	} while (count == IDLE_MAX);
}
