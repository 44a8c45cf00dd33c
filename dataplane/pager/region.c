/* Regions: added, mapped by QEMU, unmapped, removed; and taken over after another pager's death. */
#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine.h"


const char *const counter_names[COUNTERS] = {
	"faults",  "found",	  "fetched", "prefetched", "prefetch-used", "prefetch-wasted", "zero",
	"markers", "late",	  "unused",  "stored",	   "stored-zero",   "dropped",	       "discarded",
	"deferred", "invalid",	  "retried", "hedged",	   "hedge-won",	    "trimmed",	       "resynced",
	"standby", "standby-used", "starved",
};

/* Address space for every page that may ever be; memory only for those that are. */
static void *reserve(size_t bytes)
{
	void *place = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return place == MAP_FAILED ? NULL : place;
}

bool engine_init(struct engine *engine, uint32_t budget, unsigned lanes, int64_t deadline_us)
{
	struct policy_node *nodes = reserve(sizeof *nodes << POLICY_ID_BITS);
	long pages = sysconf(_SC_PHYS_PAGES);
	pthread_condattr_t steady;

	memset(engine, 0, sizeof *engine);
	engine->states = reserve(1U << POLICY_ID_BITS);
	if (!nodes || !engine->states)
		return false;
	pthread_mutex_init(&engine->lock, NULL);
	pthread_condattr_init(&steady);
	pthread_condattr_setclock(&steady, CLOCK_MONOTONIC);
	pthread_cond_init(&engine->idle, &steady);
	pthread_condattr_destroy(&steady);
	policy_init(&engine->policy, nodes, budget);
	engine->budget = budget;
	engine->deadline_us = deadline_us;
	engine->window_max = 8192;
	standby_init(&engine->standby, pages < 0 ? 0 : (uint32_t)(pages < POLICY_NONE ? pages : POLICY_NONE) / ASIDE_SHARE);
	aside_resize(engine);
	if (!sample_open(&engine->sample))
		return false;
	for (engine->lane_count = 0; engine->lane_count < lanes; engine->lane_count++)
		if (!lane_start(engine, engine->lane_count))
			return false;
	return true;
}

void engine_changed(struct engine *engine)
{
	for (unsigned i = 0; i < engine->lane_count; i++)
		lane_kick(engine->lanes[i]);
}

struct region *region_find(struct engine *engine, const char *id)
{
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++)
		if (engine->regions[slot] && !strcmp(engine->regions[slot]->id, id))
			return engine->regions[slot];
	return NULL;
}

struct region *region_by_file(struct engine *engine, uint64_t device, uint64_t inode)
{
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
		struct region *region = engine->regions[slot];

		if (region && region->device == device && region->inode == inode)
			return region;
	}
	return NULL;
}

/* Room for `pages` among the numbers of pages; the last number is POLICY_NONE. */
static bool find_room(const struct engine *engine, uint32_t pages, uint32_t *first)
{
	*first = 0;
	for (;;) {
		const struct region *in_the_way = NULL;

		for (unsigned slot = 0; slot < REGIONS_MAX; slot++) {
			const struct region *region = engine->regions[slot];

			if (region && *first < region->first + region->pages && region->first < *first + pages)
				in_the_way = region;
		}
		if (!in_the_way)
			return *first + pages < POLICY_NONE;
		*first = in_the_way->first + in_the_way->pages;
		if (*first + pages >= POLICY_NONE)
			return false;
	}
}

static bool meta_fill(struct meta *meta, const char *id, uint64_t pages)
{
	meta->magic = META_MAGIC;
	meta->version = META_VERSION;
	meta->pages = pages;
	snprintf(meta->id, sizeof meta->id, "%s", id);
	return !gnutls_rnd(GNUTLS_RND_KEY, meta->key, sizeof meta->key);
}

static void region_free(struct region *region)
{
	if (region->meta)
		munmap(region->meta, meta_size(region->pages));
	if (region->file >= 0)
		close(region->file);
	if (region->meta_fd >= 0)
		close(region->meta_fd);
	if (region->faults >= 0)
		close(region->faults);
	free(region);
}

/* A pager that was killed may have set a bit, and not counted it. */
static void count_bits(struct region *region)
{
	for (unsigned i = 0; i <= META_STORES; i++) {
		const uint64_t *words = meta_behind(region->meta, i);
		uint64_t count = 0;

		for (uint64_t word = 0; word < (region->meta->pages + 63) / 64; word++)
			count += (uint64_t)__builtin_popcountll(words[word]);
		if (i < META_STORES)
			region->meta->behind_count[i] = count;
		else
			region->meta->poisoned = count;
	}
}

struct region *region_add(struct engine *engine, const char *id, uint64_t pages, int file, int meta, bool fresh)
{
	struct region *region = calloc(1, sizeof *region);
	size_t bytes = pages * PAGE_SIZE;
	struct stat info, meta_info;
	int failure = EINVAL;
	uint32_t window;
	void *place;

	if (!region) {
		close(file);
		close(meta);
		return NULL;
	}
	region->file = file;
	region->meta_fd = meta;
	region->faults = -1;
	TAILQ_INIT(&region->limbos);
	for (unsigned store = 0; store < META_STORES; store++)
		meter_init(&region->meters[store]);
	region->pages = (uint32_t)pages;
	snprintf(region->id, sizeof region->id, "%s", id);
	if (!pages || pages >= POLICY_NONE || fstat(file, &info) < 0 || !S_ISREG(info.st_mode) ||
	    info.st_size != (off_t)bytes || fstat(meta, &meta_info) < 0 ||
	    meta_info.st_size != (off_t)meta_size(pages))
		goto fail;
	region->device = info.st_dev;
	region->inode = info.st_ino;
	failure = ENOMEM;
	place = mmap(NULL, meta_size(pages), PROT_READ | PROT_WRITE, MAP_SHARED, meta, 0);
	region->meta = place == MAP_FAILED ? NULL : place;
	if (!region->meta)
		goto fail;
	madvise(region->meta, meta_size(pages), MADV_DONTDUMP);
	failure = EPROTONOSUPPORT;
	if (!fresh && (region->meta->magic != META_MAGIC || region->meta->version < META_VERSION_OLDEST ||
		       region->meta->version > META_VERSION))
		goto fail;
	failure = EINVAL;
	if (fresh ? !meta_fill(region->meta, id, pages)
		  : region->meta->pages != pages || strncmp(region->meta->id, id, sizeof region->meta->id))
		goto fail;

	pthread_mutex_lock(&engine->lock);
	failure = ENOSPC;
	while (region->slot < REGIONS_MAX && engine->regions[region->slot])
		region->slot++;
	if (region->slot == REGIONS_MAX || !find_room(engine, region->pages, &region->first)) {
		pthread_mutex_unlock(&engine->lock);
		goto fail;
	}
	window = engine->budget / 4 < engine->window_max ? engine->budget / 4 : engine->window_max;
	streams_init(&region->streams, region->pages, window);
	/* All its states are PAGE_ZERO already; to look at the records of a new region would make memory for them. */
	if (fresh) {
		engine->counts[PAGE_ZERO] += region->pages;
		region->counts[PAGE_ZERO] = region->pages;
	}
	for (uint32_t page = 0; !fresh && page < region->pages; page++) {
		enum page_state state = !table_record(region, page)->version ? PAGE_ZERO
					: table_poisoned(region, page)	     ? PAGE_POISONED
									     : PAGE_ABSENT;

		engine->states[region->first + page] = (uint8_t)state;
		engine->counts[state]++;
		region->counts[state]++;
	}
	engine->regions[region->slot] = region;
	/* A pager that takes over has the cache that was last set. */
	if (!fresh && region->meta->budget)
		engine->budget = engine->policy.budget = (uint32_t)region->meta->budget;
	aside_resize(engine);
	region->meta->budget = engine->budget;
	region->home = region->meta->home;
	region->poison = region->meta->poison;
	region->pack = region->meta->pack;
	region->meta->version = META_VERSION;
	if (!fresh)
		count_bits(region);
	/* What the earlier pager sent last may still be under way. */
	for (unsigned store = 0; !fresh && store < META_STORES; store++)
		region->hold_us[store] = now_us() + 1000 * engine->deadline_us;
	pthread_mutex_unlock(&engine->lock);
	for (unsigned store = 0; store < META_STORES; store++)
		if (meta_marking(region->meta, store))
			region_look_at_all(engine, region, store);
	engine_changed(engine);
	return region;
fail:
	region_free(region);
	errno = failure;
	return NULL;
}

/* Every page that is in the file, whoever brought it there, is taken for modified. None of them may leave yet: before
 * the lanes have the userfaultfd they cannot protect what they seal, and would miss what the guest writes meanwhile. */
static void find_resident(struct engine *engine, struct region *region)
{
	off_t at = 0, end, size = (off_t)region->pages * PAGE_SIZE;

	while (at < size && (at = lseek(region->file, at, SEEK_DATA)) >= 0 && at < size) {
		end = lseek(region->file, at, SEEK_HOLE);
		if (end < 0 || end > size)
			end = size;
		pthread_mutex_lock(&engine->lock);
		for (; at < end; at += PAGE_SIZE) {
			uint32_t page = (uint32_t)(at / PAGE_SIZE);
			enum page_state state;

			/* It comes or goes: look again. */
			if (*table_byte(engine, region, page) & PAGE_BUSY) {
				table_settle(engine, region, page, 1);
				break;
			}
			if (table_state(engine, region, page) == PAGE_STANDBY)
				aside_give_up(engine, region, page);
			state = table_state(engine, region, page);
			if (state != PAGE_ZERO && state != PAGE_ABSENT && state != PAGE_POISONED)
				continue;
			table_note_poisoned(region, page, false);
			table_set(engine, region, page, PAGE_DIRTY);
		}
		pthread_mutex_unlock(&engine->lock);
	}
}

void region_let_leave(struct engine *engine, struct region *region)
{
	for (uint32_t page = 0, end; page < region->pages; page = end) {
		end = region->pages - page < SLICE ? region->pages : page + SLICE;
		pthread_mutex_lock(&engine->lock);
		for (uint32_t i = page; i < end && !region->home; i++) {
			enum page_state state;

			table_settle(engine, region, i, 1);
			state = table_state(engine, region, i);
			/* What is on its way home is let go, or kept, by the answer to that. */
			if (state == PAGE_CLEAN || state == PAGE_DIRTY)
				policy_insert(&engine->policy, region->first + i, false);
		}
		pthread_mutex_unlock(&engine->lock);
	}
}

bool region_map(struct engine *engine, struct region *region, int faults, uint64_t base, uint64_t length)
{
	if (region->faults >= 0 || region->closing || length < (uint64_t)region->pages * PAGE_SIZE) {
		close(faults);
		return false;
	}
	region->base = base;
	region->meta->base = base;
	region->meta->length = length;
	/* Before a lane protects anything. */
	memory_unprotect_all(region, faults);
	find_resident(engine, region);
	pthread_mutex_lock(&engine->lock);
	region->faults = faults;
	pthread_mutex_unlock(&engine->lock);
	region_let_leave(engine, region);
	/* Pages that a predecessor was discarding: zeros, that may be marked as broken still. */
	for (uint32_t page = 0; region->meta->poisoned && page < region->pages; page++) {
		pthread_mutex_lock(&engine->lock);
		if (table_poisoned(region, page) && table_state(engine, region, page) == PAGE_ZERO) {
			memory_cleanse(region, page);
			table_note_poisoned(region, page, false);
		}
		pthread_mutex_unlock(&engine->lock);
	}
	engine_changed(engine);
	/* Faults that a predecessor read and did not answer happen again. */
	memory_wake(region, 0, region->pages);
	return true;
}

/* Wait until no lane has, or uses, something of the region that `count` counts. */
static bool wait_lanes(struct engine *engine, const _Atomic unsigned *count, int64_t ms)
{
	struct timespec until;
	bool done;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000;
	pthread_mutex_lock(&engine->lock);
	while (*count) {
		engine_changed(engine);
		if (pthread_cond_timedwait(&engine->idle, &engine->lock, &until) == ETIMEDOUT)
			break;
	}
	done = !*count;
	pthread_mutex_unlock(&engine->lock);
	return done;
}

void region_unmap(struct engine *engine, struct region *region)
{
	int faults = region->faults;

	if (faults < 0)
		return;
	pthread_mutex_lock(&engine->lock);
	region->faults = -1;
	region->meta->length = 0;
	pthread_mutex_unlock(&engine->lock);
	if (wait_lanes(engine, &region->attached, 5000))
		close(faults);
}

/* Other regions' faults wait for the lock, so not all at once. */
static void forget_slice(struct engine *engine, struct region *region, uint32_t page, uint32_t end)
{
	pthread_mutex_lock(&engine->lock);
	for (; page < end; page++) {
		if (table_state(engine, region, page) == PAGE_STANDBY)
			aside_give_up(engine, region, page);
		if (table_state(engine, region, page) == PAGE_HELD)
			free(held_take(engine, region->first + page, NULL));
		if (*table_byte(engine, region, page) != PAGE_ZERO) {
			table_set(engine, region, page, PAGE_ZERO);
			*table_byte(engine, region, page) = PAGE_ZERO;
		}
		policy_forget(&engine->policy, region->first + page);
	}
	pthread_mutex_unlock(&engine->lock);
}

bool region_remove(struct engine *engine, struct region *region)
{
	region->closing = true;
	region_unmap(engine, region);
	if (!wait_lanes(engine, &region->views, 5000))
		return false;
	for (uint32_t page = 0; page < region->pages; page += SLICE)
		forget_slice(engine, region, page, region->pages - page < SLICE ? region->pages : page + SLICE);
	pthread_mutex_lock(&engine->lock);
	for (unsigned i = 0; i < engine->deferred_count;)
		if (engine->deferred[i].region == region)
			engine->deferred[i] = engine->deferred[--engine->deferred_count];
		else
			i++;
	for (unsigned i = 0; i < engine->trim_count;)
		if (engine->trims[i].region == region)
			engine->trims[i] = engine->trims[--engine->trim_count];
		else
			i++;
	engine->counts[PAGE_ZERO] -= region->pages;
	engine->regions[region->slot] = NULL;
	pthread_mutex_unlock(&engine->lock);
	region_free(region);
	return true;
}

void region_pack(struct engine *engine, struct region *region, bool on)
{
	pthread_mutex_lock(&engine->lock);
	region->meta->pack = on;
	region->pack = on;
	pthread_mutex_unlock(&engine->lock);
}

void engine_budget(struct engine *engine, uint32_t pages)
{
	pthread_mutex_lock(&engine->lock);
	engine->budget = pages;
	engine->policy.budget = pages;
	aside_resize(engine);
	for (unsigned slot = 0; slot < REGIONS_MAX; slot++)
		if (engine->regions[slot]) {
			engine->regions[slot]->meta->budget = pages;
			engine->regions[slot]->streams.window_max =
				pages / 4 < engine->window_max ? pages / 4 : engine->window_max;
		}
	pthread_mutex_unlock(&engine->lock);
	engine_changed(engine);
}
