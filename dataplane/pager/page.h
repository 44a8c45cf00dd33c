/* The state machine of one page of paged memory: the one place that says what may happen to a page, and what then.
 *
 * The design gives a page a *home* (where its bytes are when nobody uses them) and a *mode* here. The states below are
 * the pairs that exist, and those between two of them while something is under way:
 *
 *   state        home   mode      bytes here         meaning
 *   ZERO         local  invalid   no                 never written, or discarded: it reads as zeros, no store has it
 *   ABSENT       store  invalid   no                 the store has it
 *   FETCH        store  -         no                 on its way here, to be installed protected
 *   FETCH_WRITE  store  -         no                 on its way here for a writer, to be installed writable
 *   FETCH_DROP   local  -         no                 on its way here, but discarded meanwhile
 *   HELD         store  shared    in the pager       here, but kept out of the memory: its first use tells of a stream
 *   STANDBY      store  shared    in the pager       left the memory a moment ago: its use costs no fetch, and tells the policy
 *   CLEAN        store  shared    yes, protected     the same as at home
 *   DIRTY        store  modified  yes                may differ from home; a takeover takes every resident page for this
 *   WRITE        store  modified  yes, protected     sealed, on its way home; will be dropped
 *   REDIRTY      store  modified  yes                written again on the way home
 *   WRITE_DROP   local  -         no                 discarded on the way home, or the stores are being told to forget it
 *   LOST         store  invalid   no                 no store gave valid bytes: whoever needs them waits
 *   POISONED     store  invalid   no, marked         the same, and whoever touches it gets SIGBUS
 *   HEAL         store  -         no, marked         poisoned, and on its way here all the same
 *
 * Peers as homes will add states here and nowhere else.
 *
 * Apart from its state a page is BUSY while one thread makes system calls on it, which is never long. Nobody else
 * changes the state of a busy page: faults mark it NOTED, and the thread that ends its work wakes them, so that they
 * fault again. So each userfaultfd call happens to a page that nobody else works on.
 */
#pragma once

#include <stdint.h>

enum page_state {
	PAGE_ZERO,
	PAGE_ABSENT,
	PAGE_FETCH,
	PAGE_FETCH_WRITE,
	PAGE_FETCH_DROP,
	PAGE_HELD,
	PAGE_STANDBY,
	PAGE_CLEAN,
	PAGE_DIRTY,
	PAGE_WRITE,
	PAGE_REDIRTY,
	PAGE_WRITE_DROP,
	PAGE_LOST,
	PAGE_POISONED,
	PAGE_HEAL,
	PAGE_STATES,
};

enum page_event {
	EVENT_READ,	   /* a thread waits to read what is not here */
	EVENT_WRITE,	   /* a thread waits to write what is not here */
	EVENT_PROTECT,	   /* a thread waits to write a protected page */
	EVENT_PREFETCH,	   /* the prefetcher would like it */
	EVENT_ARRIVED,	   /* valid bytes came from a store */
	EVENT_ARRIVED_HOLD, /* the same, and nobody waits, and it is to mark a stream */
	EVENT_INVALID,	   /* every store answered, none with valid bytes */
	EVENT_NOT_FETCHED, /* the prefetch was given up */
	EVENT_UNHOLD,	   /* the pager wants the room of a page that it holds, or that is on standby */
	EVENT_EVICT,	   /* the cache wants its room */
	EVENT_STANDBY,	   /* the same, but the bytes of a clean page may stay in the pager */
	EVENT_EVICT_ZERO,  /* the cache wants the room of a clean page that no store has */
	EVENT_IS_ZERO,	   /* while it was to be sealed it was found to be all zeros */
	EVENT_STORED,	   /* the stores have it */
	EVENT_STORED_STANDBY, /* the same, and the bytes may stay in the pager */
	EVENT_NOT_STORED,  /* no store took it */
	EVENT_DISCARD,	   /* the guest gave it back */
	EVENT_TRIM,	   /* stores are to forget what they had of it */
	EVENT_RETRY,	   /* a store came back: lost pages may be there after all */
	EVENT_POISON,	   /* nobody shall wait for a lost page */
	PAGE_EVENTS,
};

enum page_action {
	ACTION_NONE,
	ACTION_ILLEGAL,	   /* this cannot happen: a defect */
	ACTION_WAIT,	   /* what is under way will wake the thread */
	ACTION_WAKE,	   /* the reason is gone: let the thread fault again */
	ACTION_ZERO_CLEAN, /* install zeros, protected */
	ACTION_ZERO_DIRTY, /* install zeros, writable */
	ACTION_FETCH,	   /* ask a store */
	ACTION_CLEAN,	   /* install what came, protected */
	ACTION_DIRTY,	   /* install what came, writable */
	ACTION_HOLD,	   /* keep what came in the pager */
	ACTION_RELEASE,	   /* free what was held */
	ACTION_UNPROTECT,  /* make it writable */
	ACTION_SEAL,	   /* protect, seal, send */
	ACTION_TRIM,	   /* tell the stores to forget it, as a write that nobody writes over meanwhile */
	ACTION_DROP,	   /* take the bytes out of the memory, and wake */
	ACTION_KEEP,	   /* take the bytes out of the memory into the pager, and wake */
	ACTION_COMMIT_KEEP, /* note what the store now has, then as ACTION_KEEP */
	ACTION_COMMIT_DROP, /* note what the store now has, then as ACTION_DROP */
	ACTION_POISON,	   /* mark it as broken, and wake */
	ACTION_CLEANSE,	   /* take the mark away: install zeros, then as ACTION_DROP */
	ACTION_COMMIT,	   /* note what the store now has; the bytes here are newer */
};

struct page_step {
	uint8_t next;
	uint8_t action;
};

/* State with what is true of it for a short time, as the page table keeps it in one byte. */
enum {
	PAGE_STATE_MASK = 0x0f,
	PAGE_BUSY = 0x10,  /* a thread makes system calls on it */
	PAGE_NOTED = 0x20, /* threads of the guest wait for it */
};

/* The total table: every state with every event. */
struct page_step page_step(enum page_state state, enum page_event event);

/* Whether the bytes are in the guest's memory in a state. */
int page_resident(enum page_state state);

const char *page_state_name(enum page_state state);
