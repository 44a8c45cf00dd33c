/* Bringing all of a region here while it is used, what was used most first, so that it needs its stores no more. */
#include <stdlib.h>

#include "engine.h"

enum { BLOCK = RUN_MAX, CHUNK = 4096, DEMAND_US = 1000, AGAIN_US = 20000 };

struct block {
	uint32_t number, heat;
};

/* Under the lock: what a region has of the budget, which is not its limit any more. */
static void recount(struct engine *engine, struct region *region, bool home)
{
	uint32_t charged = table_charged(region), writing = (uint32_t)region->counts[PAGE_WRITE],
		 aside = (uint32_t)region->counts[PAGE_STANDBY];

	if (home) {
		engine->charged -= charged;
		engine->writing -= writing;
		engine->aside -= aside;
	} else {
		engine->charged += charged;
		engine->writing += writing;
		engine->aside += aside;
	}
}

void region_home(struct engine *engine, struct region *region, bool on)
{
	pthread_mutex_lock(&engine->lock);
	region->meta->home = on;
	if (on)
		aside_give_up_all(engine, region);
	if (region->home != on)
		recount(engine, region, on);
	region->home = on;
	for (uint32_t page = 0; on && page < region->pages; page++) {
		if (!(page % CHUNK)) {
			pthread_mutex_unlock(&engine->lock);
			pthread_mutex_lock(&engine->lock);
		}
		policy_leave(&engine->policy, region->first + page);
	}
	pthread_mutex_unlock(&engine->lock);
	if (!on)
		region_let_leave(engine, region);
	engine_changed(engine);
}

static int by_heat(const void *left, const void *right)
{
	const struct block *a = left, *b = right;

	if (a->heat != b->heat)
		return a->heat > b->heat ? -1 : 1;
	return a->number < b->number ? -1 : a->number > b->number;
}

/* Blocks of pages in a row that have some away, the hottest first, those of equal heat in their order. */
static void rank(struct engine *engine, struct region *region, struct homing *homing)
{
	uint32_t blocks = (region->pages + BLOCK - 1) / BLOCK;
	struct block *found = malloc(blocks * sizeof *found);

	if (!found)
		abort();
	homing->count = homing->next = 0;
	pthread_mutex_lock(&engine->lock);
	for (uint32_t number = 0; number < blocks; number++) {
		uint32_t heat = 0, away = 0, first = number * BLOCK;

		if (!(number % (CHUNK / BLOCK))) {
			pthread_mutex_unlock(&engine->lock);
			pthread_mutex_lock(&engine->lock);
		}
		for (uint32_t page = first; page < first + BLOCK && page < region->pages; page++) {
			enum page_state state = table_state(engine, region, page);

			if (state != PAGE_ABSENT && state != PAGE_HELD)
				continue;
			away++;
			heat += policy_heat(&engine->policy, region->first + page);
		}
		if (away)
			found[homing->count++] = (struct block){number, heat};
	}
	pthread_mutex_unlock(&engine->lock);
	qsort(found, homing->count, sizeof *found, by_heat);
	free(homing->order);
	homing->order = malloc((homing->count + 1) * sizeof *homing->order);
	if (!homing->order)
		abort();
	for (uint32_t i = 0; i < homing->count; i++)
		homing->order[i] = found[i].number;
	free(found);
}

/* Ask for what is away of a block. */
static void pull(struct lane *lane, struct view *view, uint32_t block)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct operation *operations[BLOCK];
	uint32_t count = 0, page = block * BLOCK, end = page + BLOCK < region->pages ? page + BLOCK : region->pages;

	pthread_mutex_lock(&engine->lock);
	while (page < end) {
		uint32_t run = 0;

		for (; page + run < end; run++) {
			uint8_t *byte = table_byte(engine, region, page + run);

			if (*byte == PAGE_HELD) {
				free(held_take(engine, region->first + page + run, NULL));
				table_step(engine, region, page + run, EVENT_UNHOLD);
			}
			if (*byte != PAGE_ABSENT || (run && !table_joins(region, page + run - 1)))
				break;
			/* For writing, for nothing that is known of it will be of use at home again. */
			table_step(engine, region, page + run, EVENT_WRITE);
		}
		if (run) {
			operations[count] = fetch_begin(view, page, run);
			operations[count++]->pull = true;
			view->homing.in_flight += run;
		}
		page += run ? run : 1;
	}
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0; i < count; i++)
		fetch_send(lane, operations[i]);
}

void home_ended(const struct operation *operation)
{
	struct homing *homing = &operation->view->homing;

	homing->in_flight -= operation->count;
	window_arrived(&homing->window, operation->count, now_us());
}

static void home_region(struct lane *lane, struct view *view, int64_t now)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct homing *homing = &view->homing;
	uint64_t left;

	if (!homing->window.pages)
		window_init(&homing->window, now);
	for (;;) {
		bool demand = engine->demands != 0;

		if (homing->in_flight >= (demand ? (uint32_t)WINDOW_MIN : homing->window.pages)) {
			/* The last demand may be answered to another lane. */
			if (demand && now + DEMAND_US < lane->next_us)
				lane->next_us = now + DEMAND_US;
			return;
		}
		if (homing->next < homing->count) {
			pull(lane, view, homing->order[homing->next++]);
			continue;
		}
		/* Some were on their way out meanwhile. */
		pthread_mutex_lock(&engine->lock);
		left = region->counts[PAGE_ABSENT] + region->counts[PAGE_HELD];
		pthread_mutex_unlock(&engine->lock);
		if (!left)
			return;
		if (now < homing->again_us) {
			if (homing->again_us < lane->next_us)
				lane->next_us = homing->again_us;
			return;
		}
		homing->again_us = now + AGAIN_US;
		rank(engine, region, homing);
		if (!homing->count)
			return;
	}
}

void home(struct lane *lane)
{
	int64_t now = now_us();

	if (lane->number)
		return;
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct view *view = lane->views[slot];

		if (view && view->region->home && !view->region->closing && view->region->faults >= 0)
			home_region(lane, view, now);
	}
}
