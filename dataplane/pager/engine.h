/* The page engine: what the lanes, the control socket and the parts of the fault path share.
 *
 * Lanes are threads that all do the same: each has connections of its own to every store, waits for faults of every
 * region and for answers, and does what follows by itself: a fault is read, asked for, opened and installed by one
 * thread, without handing over. The page table, the policy and the streams are under one lock, held for moments and
 * never over a system call on memory or network; a page that is worked on is BUSY meanwhile (page.h).
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "histogram.h"
#include "link.h"
#include "pack.h"
#include "page.h"
#include "policy.h"
#include "seal.h"
#include "standby.h"
#include "stream.h"
#include "window.h"

enum {
	REGIONS_MAX = 64,
	LANES_MAX = 16,
	RUN_MAX = STREAM_WISH_MAX, /* pages in one request */
	LINKS = 3,		   /* of a lane to a store: the first for faults alone */
	HELD_MAX = 512,
	ASIDE_SHARE = 16, /* of the budget for pages on standby, and at least so many */
	ASIDE_MIN = 16,
	HISTOGRAM = 32,
	SAMPLES_MAX = 1000,
	SLICE = 1 << 16, /* pages that are looked at under the lock at a time: faults wait for it */
};

enum source_kind { SOURCE_KICK, SOURCE_FAULTS, SOURCE_LINK, SOURCE_LIMBO };

/* What an epoll event of a lane carries. */
struct tag {
	enum source_kind kind;
	struct view *view;
	struct link *link;
	struct limbo *limbo;
};

enum counter {
	STAT_FAULTS,	    /* messages read */
	STAT_FOUND,	    /* of them, on a page that was here or on its way */
	STAT_FETCHED,	    /* pages that came from stores */
	STAT_PREFETCHED,    /* of them, before a fault asked */
	STAT_PREFETCH_USED, /* as far as markers tell, which stand for what was asked for with them */
	STAT_PREFETCH_WASTED,
	STAT_ZERO,	    /* pages made here */
	STAT_MARKERS,	    /* faults on a held page */
	STAT_LATE,	    /* faults on a page that was on its way */
	STAT_UNUSED,	    /* markers thrown away */
	STAT_STORED,	    /* pages sent to stores */
	STAT_STORED_ZERO,   /* of zeros, so not sent */
	STAT_DROPPED,	    /* pages evicted */
	STAT_DISCARDED,	    /* pages given back by the guest */
	STAT_DEFERRED,	    /* faults that waited for room */
	STAT_INVALID,	    /* pages from a store that were not what was sealed */
	STAT_RETRIED,	    /* reads sent to another store */
	STAT_HEDGED,	    /* of a page, to the other store as well, because the first one was late */
	STAT_HEDGE_WON,	    /* and it was there sooner */
	STAT_TRIMMED,	    /* pages that stores were told to forget */
	STAT_RESYNCED,	    /* pages copied to a store that had missed them */
	STAT_STANDBY,	    /* pages evicted whose bytes stayed for a while */
	STAT_STANDBY_USED,  /* faults on one of those */
	STAT_STARVED,	    /* pages that this host had no memory for, tried again later */
	COUNTERS,
};

extern const char *const counter_names[COUNTERS];

struct extent {
	struct region *region;
	uint32_t page, count;
};

/* A connection that was ended with writes unanswered, as long as the store has not closed it. */
struct limbo {
	TAILQ_ENTRY(limbo) entry;
	struct tag tag;
	int fd; /* -1: nobody will ever know */
	unsigned store;
	struct extent *extents;
	uint32_t count;
};

struct region {
	char id[REGION_ID_MAX + 1];
	unsigned slot;
	uint32_t first; /* its first page in the engine's numbers */
	uint32_t pages;
	int file, meta_fd;
	struct meta *meta;
	uint64_t device, inode;
	struct streams streams;
	/* Where QEMU maps it; -1: nowhere. It is closed when no lane can use it any more. */
	_Atomic int faults;
	uint64_t base;
	_Atomic bool closing;
	_Atomic unsigned views;		/* lanes that have not let go of it */
	_Atomic unsigned attached;	/* lanes that read its faults */
	int64_t hold_us[META_STORES];	/* no writes to that store before, for those of an earlier pager */
	TAILQ_HEAD(, limbo) limbos;
	uint32_t other_bytes[META_STORES]; /* the serial since which that store is the one that it is */
	_Atomic int64_t stalled_us[META_STORES]; /* when a link to it was last given up for silence */
	unsigned ready[META_STORES];	/* links of all lanes */
	_Atomic bool refused[META_STORES];
	char why[META_STORES][128];
	uint64_t counts[PAGE_STATES]; /* pages in each state */
	_Atomic bool poison;	      /* lost pages are not waited for */
	_Atomic bool healing;	      /* poisoned ones are tried again, from `heal` on */
	uint32_t heal;
	_Atomic bool pack;	      /* what leaves is packed first */
	_Atomic bool home;	      /* all of it comes here, nothing leaves, and the budget is not its */
	uint32_t lost_waiting;	      /* lost pages that somebody waits for */
	struct meter meters[META_STORES];
	uint32_t resync[META_STORES]; /* where the next look for a page that the store missed begins */
};

struct fault {
	struct region *region;
	uint32_t page;
	enum page_event event;
	uint32_t needs; /* pages that there has to be room for */
};

/* One measurement at a time: begun and read by the thread of the orders, done by the first lane. */
struct sample {
	_Atomic bool running, ended;
	bool in_flight;
	struct region *region;
	unsigned store;
	uint32_t wanted, taken;
	_Atomic int64_t until_us;
	int64_t link_us; /* without a link until then it ends */
	uint64_t seed;
	int done; /* an eventfd: it ended */
	uint32_t took[SAMPLES_MAX]; /* microseconds */
};

struct engine {
	pthread_mutex_t lock;
	pthread_cond_t idle; /* a busy page is not busy any more, or a lane let go of a region */
	uint8_t *states;
	struct policy policy;
	struct standby standby;
	uint32_t budget, charged, writing, aside;
	/* Pages that may be on their way home while there is room for others: as many as the link needs, and no more. */
	uint32_t depth;
	bool short_of_room; /* something that was wanted did not get room since the last look */
	uint64_t counts[PAGE_STATES]; /* pages in each state */
	struct region *regions[REGIONS_MAX];
	uint64_t serial; /* raised by every change of regions and stores */
	struct {
		uint32_t page; /* POLICY_NONE: free */
		char *bytes;
		uint32_t guessed;
	} held[HELD_MAX];
	unsigned held_next;
	struct fault *deferred;
	unsigned deferred_count, deferred_room;
	int64_t starved_us; /* this host had no memory for a page: nothing is tried again before */
	struct extent *trims; /* pages that stores may forget */
	unsigned trim_count, trim_room;
	uint64_t stats[COUNTERS];
	uint64_t latency[HISTOGRAM]; /* of fetches that a fault waited for: number i took less than 2^i microseconds */
	struct sample sample;
	_Atomic unsigned demands; /* fetches under way that a fault waits for */
	unsigned waiters;
	struct lane *lanes[LANES_MAX];
	unsigned lane_count;
	int64_t deadline_us;
	uint32_t window_max;
	bool ending;
};

/* What the lane that brings a region here knows of that. */
struct homing {
	uint32_t *order; /* blocks */
	uint32_t next, count, in_flight;
	struct window window;
	int64_t again_us;
};

/* A region as one lane sees it. */
struct view {
	struct region *region;
	struct tag faults_tag;
	int faults;
	struct seal seal;
	struct link links[META_STORES][LINKS];
	struct tag tags[META_STORES][LINKS];
	struct meta_store stores[META_STORES];
	bool was_ready[META_STORES][LINKS];
	struct homing homing;
	unsigned operations;
};

/* Pages in a row that are busy, to be installed. */
struct batch {
	uint32_t page, count;
	const char *bytes; /* NULL: zeros */
	bool protect;
	bool demand;	       /* a fault waits for them */
	enum page_state before; /* what they are again if there is no memory for them */
};

enum operation_kind { FETCH, STORE, SAMPLE };

/* Pages in a row that are on their way. */
struct operation {
	TAILQ_ENTRY(operation) entry;
	enum operation_kind kind;
	struct view *view;
	uint32_t page; /* of the region */
	uint32_t count;
	bool demand;
	bool trim; /* a STORE of nothing */
	bool pull; /* to be at home here */
	uint32_t marker; /* this one of them marks a stream; RUN_MAX: none */
	uint32_t guessed; /* pages that were asked for with the marker */
	unsigned tried;	 /* stores whose bytes were not valid, or that failed, as bits */
	unsigned wrong;	 /* stores that answered with other bytes */
	unsigned behind; /* stores that are known not to have all of these pages */
	unsigned pending, stored;
	unsigned asked;	 /* of a FETCH: the store that was asked first */
	bool hedged, answered;
	int64_t begun_us;
	char *buffer; /* of a STORE: shared by its requests */
	struct seal_record records[];
};

TAILQ_HEAD(operations, operation);

struct lane {
	struct engine *engine;
	unsigned number;
	pthread_t thread;
	int epoll;
	int kick;
	struct tag kick_tag;
	struct view *views[REGIONS_MAX];
	uint64_t serial;
	struct requests done;
	struct hedge hedge;
	uint32_t fetches;
	struct operations parked;  /* fetches that no store can be asked for now; under the lock, for others look */
	uint64_t storing;	   /* bytes of write-back under way */
	int64_t evict_us, resync_us, retry_us, next_us; /* when to try again what could not be done */
	unsigned waiting;    /* fetches under way that a fault waits for */
	int64_t spin_us;     /* until then one of them will have been answered, likely */
	uint32_t batch;	     /* pages to evict at a time */
	struct {
		void *head;
		unsigned count;
	} buffers[2];
	bool idle;	     /* for a while */
	char scratch[RUN_MAX * PAGE_SIZE]; /* what is sealed next */
	struct pack pack;
	char page[PAGE_SIZE]; /* what was packed or unpacked last */
};

/* lane.c */
bool lane_start(struct engine *engine, unsigned number);
void lane_kick(struct lane *lane);

/* operation.c */
char *buffer_get(struct lane *lane, uint32_t pages);
void buffer_put(struct lane *lane, char *buffer, uint32_t pages);
/* What streams needed goes back; whether there is any of that. */
bool buffers_spare(const struct lane *lane);
void buffers_trim(struct lane *lane);
struct operation *operation_new(struct view *view, enum operation_kind kind, uint32_t page, uint32_t count);
/* How many bytes it has at a store: all pages in full but the last one, which may be packed. */
uint32_t operation_bytes(const struct operation *operation);
void operation_free(struct lane *lane, struct operation *operation);

/* view.c */
/* Under the lock. */
struct view *view_open(struct lane *lane, struct region *region);
/* Under the lock: bring a view to what the table says. Returns whether it can be freed. */
bool view_sync(struct lane *lane, struct view *view);
void view_detach(struct lane *lane, struct view *view);
unsigned view_store(const struct view *view, const struct link *link);
/* The best link of a view to `store`, or NULL. */
struct link *view_link(struct view *view, unsigned store, bool demand);

/* fault.c */
void fault_happened(struct lane *lane, struct view *view, uint32_t page, enum page_event event);
void faults_resume(struct lane *lane);
/* False: there was no memory for all of them. */
bool install(struct lane *lane, struct region *region, struct batch batch);
/* The same for a page that was on standby; its place is free then. */
void install_found(struct lane *lane, struct region *region, struct batch batch, uint32_t slot);

/* fetch.c */
/* Under the lock: pages in a row, which are in a state for it, are on their way once `fetch_send` is called. */
struct operation *fetch_begin(struct view *view, uint32_t page, uint32_t count);
void fetch_send(struct lane *lane, struct operation *operation);
void fetch_answered(struct lane *lane, struct request *request);
/* When to look again whether an answer on this link is late; asks the other store for what is. */
int64_t fetch_hedge(struct lane *lane, struct view *view, struct link *link, int64_t now);
void fetch_fail(struct lane *lane, struct operation *operation);

/* sample.c */
bool sample_open(struct sample *sample);
/* False: another one is under way. */
bool sample_begin(struct engine *engine, struct region *region, unsigned store, uint32_t count);
/* Nobody wants it any more: it ends soon. */
void sample_cancel(struct engine *engine);
/* After `done` was raised: what came of it. */
bool sample_ended(struct engine *engine, uint32_t *pages, uint32_t *p50, uint32_t *p99);
void sample(struct lane *lane);
void sample_answered(struct lane *lane, struct request *request);

/* limbo.c */
/* A write failed with its connection, or because that was given up. */
void limbo_note(struct lane *lane, const struct request *request);
/* Under the lock: whether one of these pages may still be written at a store by an earlier write; how many may be. */
bool limbo_has(const struct region *region, unsigned store, uint32_t page, uint32_t count);
uint64_t limbo_count(const struct region *region, unsigned store);
void limbo_happened(struct lane *lane, struct limbo *limbo);
/* Under the lock: another store has that number now. */
void limbo_forget(struct region *region, unsigned store);
/* Under the lock: a lane lets go of a region. */
void limbo_close(struct lane *lane, const struct view *view);

/* poison.c */
/* Whether the kernel can. */
bool poison_possible(void);
/* Mark pages, which are busy, and release them. */
void poison_pages(struct engine *engine, struct region *region, const uint32_t *pages, uint32_t count);
void region_loss(struct engine *engine, struct region *region, bool poison);
void heal(struct lane *lane);

/* home.c */
/* Ask for more of the regions that come home. */
void home(struct lane *lane);
void home_ended(const struct operation *operation);
void region_home(struct engine *engine, struct region *region, bool on);

/* evict.c */
/* Make room; `wanted` pages more than is kept free in any case. */
void evict(struct lane *lane, uint32_t wanted);
/* Have stores forget pages that are zeros now. */
void trim(struct lane *lane);
void trim_later(struct engine *engine, struct region *region, uint32_t page, uint32_t count);
void store_answered(struct lane *lane, struct request *request);
/* Bring stores up to date that missed pages, by way of the cache. */
void resync(struct lane *lane);

/* leave.c */
/* Pages, which are busy and do not belong into the memory any more, leave it, and are released. `aside`: they are on
 * standby. */
void pages_leave(struct engine *engine, struct region *region, uint32_t page, uint32_t count, bool aside);
/* The rest under the lock. How many pages may be on standby; keep to that. */
uint32_t aside_limit(const struct engine *engine);
void aside_resize(struct engine *engine);
/* As long as more is here than may be, what is on standby goes. */
void aside_shrink(struct engine *engine);
/* Whether a page that leaves goes on standby, and then there is a place for it. */
bool aside_get(struct engine *engine, const struct region *region, uint32_t page);
/* A page on standby is not busy any more. */
void aside_list(struct engine *engine, struct region *region, uint32_t page);
/* A page on standby is wanted: the place of its bytes, which is to be freed after their use. */
uint32_t aside_take(struct engine *engine, const struct region *region, uint32_t page);
/* Pages on standby are not here any more: one, all of a region. */
void aside_give_up(struct engine *engine, struct region *region, uint32_t page);
void aside_give_up_all(struct engine *engine, struct region *region);
/* Without the lock: memory of places that nothing is in goes back to the system. */
void aside_cool(struct engine *engine);

/* memory.c: the guest's memory, by system calls */
/* Returns how many were installed: not all if QEMU is gone, or there is no memory for more. `bytes` NULL: zeros, at most
 * RUN_MAX pages. A page that is there already stays, and its threads are woken. */
uint32_t memory_install(const struct region *region, uint32_t page, uint32_t count, const char *bytes, bool protect);
void memory_protect(const struct region *region, uint32_t page, uint32_t count, bool protect);
/* Of a region that is being mapped, by the descriptor that nobody else uses yet. */
void memory_unprotect_all(const struct region *region, int faults);
void memory_drop(const struct region *region, uint32_t page, uint32_t count);
/* Whoever touches the page gets SIGBUS, also who waits for it now. */
void memory_poison(const struct region *region, uint32_t page);
/* Take that mark away; the page is then not there. */
void memory_cleanse(const struct region *region, uint32_t page);
void memory_wake(const struct region *region, uint32_t page, uint32_t count);
/* By way of the file, so that no page is made that was not there. */
bool memory_read(const struct region *region, uint32_t page, uint32_t count, char *bytes);

/* table.c: the page table, under the lock */
void table_set(struct engine *engine, struct region *region, uint32_t page, enum page_state state);
enum page_state table_state(const struct engine *engine, const struct region *region, uint32_t page);
struct page_step table_step(struct engine *engine, struct region *region, uint32_t page, enum page_event event);
uint8_t *table_byte(struct engine *engine, const struct region *region, uint32_t page);
struct seal_record *table_record(const struct region *region, uint32_t page);
/* Whether the next page can be asked for together with this one: not where this one is packed, because a request is of
 * bytes in a row. */
bool table_joins(const struct region *region, uint32_t page);
/* Pages are not busy any more; wakes the threads that met them busy, without the lock. `insert`: those that are resident
 * may be evicted from now on; `demand`: a fault wanted them. Takes and releases the lock. */
void table_release(struct engine *engine, struct region *region, uint32_t page, uint32_t count, bool insert,
		   bool demand);
/* Wait until no page of a range is busy. */
void table_settle(struct engine *engine, struct region *region, uint32_t page, uint32_t count);
bool table_behind(const struct region *region, unsigned store, uint32_t page);
bool table_poisoned(const struct region *region, uint32_t page);
void table_note_poisoned(struct region *region, uint32_t page, bool poisoned);
void table_note_behind(struct region *region, unsigned store, uint32_t page, bool behind);
/* Whether the budget is a limit for a region. Without a store that takes pages nothing of it can leave. */
bool table_bounded(const struct region *region);
/* Pages that are here, or will be, and that do not go at once when there is need of room. */
uint32_t table_kept(const struct engine *engine);
bool table_room(const struct engine *engine, uint32_t pages);
/* The same for what nobody waits for: something is left. Notes that there was none. */
bool table_room_ahead(struct engine *engine);
uint32_t table_reserve(const struct engine *engine);
/* The bytes of a held page. `used`: whether its marker was; NULL: nobody can know. */
char *held_take(struct engine *engine, uint32_t id, const bool *used);
/* Keep a page that stands for `guessed`; returns the one that had to go for it, or POLICY_NONE. */
uint32_t held_put(struct engine *engine, uint32_t id, char *bytes, uint32_t guessed, char **old);
/* Pages of a region that have, or will have, memory of this host. */
uint32_t table_charged(const struct region *region);
/* Pages of a region that no store gives back. */
uint64_t table_lost(const struct region *region);
/* Pages of a region that are neither here nor zeros. */
uint64_t table_away(const struct region *region);
/* Pages of a region that are in the memory. */
uint64_t table_here(const struct region *region);
/* Threads of the guest, by pages, that wait for what no store gives now. */
uint64_t table_waiting(const struct engine *engine, const struct region *region);

/* region.c */
bool engine_init(struct engine *engine, uint32_t budget, unsigned lanes, int64_t deadline_us);
struct region *region_find(struct engine *engine, const char *id);
struct region *region_by_file(struct engine *engine, uint64_t device, uint64_t inode);
/* Takes the descriptors. `fresh`: the meta file is new and is filled in. NULL with errno. */
struct region *region_add(struct engine *engine, const char *id, uint64_t pages, int file, int meta, bool fresh);
/* QEMU maps it at `base`; takes the userfaultfd. Everything that is in the file is taken for modified. */
bool region_map(struct engine *engine, struct region *region, int faults, uint64_t base, uint64_t length);
void region_unmap(struct engine *engine, struct region *region);
/* What is here may be evicted from now on, unless the region is at home. */
void region_let_leave(struct engine *engine, struct region *region);
bool region_remove(struct engine *engine, struct region *region);
void region_pack(struct engine *engine, struct region *region, bool on);
void engine_budget(struct engine *engine, uint32_t pages);
void engine_changed(struct engine *engine);

/* stores.c */
/* Change the store of a number; NULL takes it away. What was lost may be there after all. */
void region_store(struct engine *engine, struct region *region, unsigned number, const struct meta_store *store);
/* Note for each page that the store misses it, where that was begun, and try again what was lost: in slices. Until a store
 * is through, all pages count as missed (table_behind). */
void region_look_at_all(struct engine *engine, struct region *region, unsigned number);
/* Whether every page is here, or on another store. */
bool region_spares(struct engine *engine, struct region *region, unsigned number);

/* discard.c */
void region_discard(struct engine *engine, struct region *region, uint32_t page, uint32_t count);
