/* Pages that the guest gave back: zeros from now on, here and with the stores. */
#include <stdlib.h>

#include "engine.h"

enum { DISCARD_RUN = 512 };

static void discard_run(struct engine *engine, struct region *region, uint32_t page, uint32_t count)
{
	bool noted = false, stored = false;
	uint32_t cleanse[DISCARD_RUN], marked = 0;
	struct page_step step;

	pthread_mutex_lock(&engine->lock);
	table_settle(engine, region, page, count);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *byte = table_byte(engine, region, page + i);
		enum page_state before = *byte & PAGE_STATE_MASK;

		step = table_step(engine, region, page + i, EVENT_DISCARD);
		if (step.action == ACTION_CLEANSE)
			cleanse[marked++] = page + i;
		if (before == PAGE_STANDBY)
			standby_free(&engine->standby, aside_take(engine, region, page + i));
		if (before == PAGE_HELD)
			free(held_take(engine, region->first + page + i, NULL));
		if (before != PAGE_FETCH && before != PAGE_FETCH_WRITE && before != PAGE_FETCH_DROP)
			policy_forget(&engine->policy, region->first + page + i);
		noted |= before == PAGE_LOST;
		stored |= table_record(region, page + i)->version || before == PAGE_WRITE || before == PAGE_REDIRTY;
		table_record(region, page + i)->version = 0;
		for (unsigned store = 0; store < META_STORES; store++)
			table_note_behind(region, store, page + i, false);
		*byte |= PAGE_BUSY;
	}
	engine->stats[STAT_DISCARDED] += count;
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0; i < marked; i++)
		memory_cleanse(region, cleanse[i]);
	memory_drop(region, page, count);
	/* Who waits for a fetch that goes on must stay noted until it ends. */
	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *byte = table_byte(engine, region, page + i);

		noted |= (*byte & PAGE_NOTED) != 0;
		if (region->meta->poisoned)
			table_note_poisoned(region, page + i, false);
		*byte &= (*byte & PAGE_STATE_MASK) == PAGE_FETCH_DROP ? (uint8_t)~PAGE_BUSY : PAGE_STATE_MASK;
	}
	/* Not before: a page that is busy is passed over. */
	if (stored)
		trim_later(engine, region, page, count);
	if (engine->waiters)
		pthread_cond_broadcast(&engine->idle);
	pthread_mutex_unlock(&engine->lock);
	if (noted)
		memory_wake(region, page, count);
}

void region_discard(struct engine *engine, struct region *region, uint32_t page, uint32_t count)
{
	for (uint32_t run; count; page += run, count -= run) {
		run = count < DISCARD_RUN ? count : DISCARD_RUN;
		discard_run(engine, region, page, run);
	}
	engine_changed(engine);
}
