/* Which stores a region has, and what becomes of its pages when that changes. */
#include <string.h>

#include "engine.h"

void region_look_at_all(struct engine *engine, struct region *region, unsigned number)
{
	bool mark = meta_marking(region->meta, number);

	for (uint32_t page = 0, end; (mark || region->counts[PAGE_LOST]) && page < region->pages; page = end) {
		end = region->pages - page < SLICE ? region->pages : page + SLICE;
		pthread_mutex_lock(&engine->lock);
		for (uint32_t i = page; i < end; i++) {
			enum page_state state = table_state(engine, region, i);

			/* The records of zeros are not looked at: that would make memory for them. */
			if (mark && state != PAGE_ZERO && table_record(region, i)->version)
				table_note_behind(region, number, i, true);
			if (state == PAGE_LOST) {
				table_step(engine, region, i, EVENT_RETRY);
				*table_byte(engine, region, i) &= PAGE_STATE_MASK;
			}
		}
		pthread_mutex_unlock(&engine->lock);
	}
	region->meta->marking[number] = 0;
}

void region_store(struct engine *engine, struct region *region, unsigned number, const struct meta_store *store)
{
	struct meta_store *place = &region->meta->stores[number], next = store ? *store : (struct meta_store){.port = 0};
	uint32_t serial = place->serial + 1;
	bool same = store && !strcmp(store->export, place->export);

	pthread_mutex_lock(&engine->lock);
	/* The same bytes behind another address miss nothing; another store misses every page that there is. A pager
	 * that is killed here leaves the old store, or none, or the new one, and never one that seems to miss nothing:
	 * what is missed comes into force with the serial, and the store with the first byte of its address. */
	place->address[0] = 0;
	atomic_signal_fence(memory_order_seq_cst);
	region->meta->marking[number] = store && !same ? serial : 0;
	place->serial = serial;
	atomic_signal_fence(memory_order_seq_cst);
	next.serial = serial;
	next.address[0] = 0;
	*place = next;
	atomic_signal_fence(memory_order_seq_cst);
	place->address[0] = store ? store->address[0] : 0;
	region->refused[number] = false;
	if (!same) {
		limbo_forget(region, number);
		region->other_bytes[number] = serial;
		meter_reset(&region->meters[number]);
		memset(meta_behind(region->meta, number), 0, (region->meta->pages + 63) / 64 * sizeof(uint64_t));
		region->meta->behind_count[number] = 0;
	}
	if (store && region->counts[PAGE_POISONED]) {
		region->heal = 0;
		region->healing = true;
	}
	pthread_mutex_unlock(&engine->lock);
	region_look_at_all(engine, region, number);
	engine_changed(engine);
	memory_wake(region, 0, region->pages);
}

bool region_spares(struct engine *engine, struct region *region, unsigned number)
{
	bool spare;

	pthread_mutex_lock(&engine->lock);
	spare = !table_away(region) || !region->meta->stores[number].address[0];
	for (unsigned store = 0; store < META_STORES; store++)
		spare |= store != number && region->meta->stores[store].address[0] &&
			 !region->meta->behind_count[store];
	pthread_mutex_unlock(&engine->lock);
	return spare;
}
