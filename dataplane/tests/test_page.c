/* Every run of one page that the table allows, followed to the end: a guest thread that reads, writes and discards, the
 * pager's own wishes, stores that answer, fail or lie, and a pager that is killed at any moment.
 *
 * The bytes are abstract: what a copy holds is the guest's latest, all zeros that are the latest, or stale. A reader
 * that is shown stale bytes is the failure that is looked for; and a thread that waits while nothing is under way.
 */
#include "page.h"

#include <stdbool.h>

#include "check.h"

enum bytes { NONE, LATEST, STALE };

/* Everything that matters about a page at one moment. `truth_zero`: the guest's latest bytes are zeros. */
struct world {
	uint8_t state;
	uint8_t here;	   /* in the memory */
	uint8_t held;	   /* in the pager */
	uint8_t record;	   /* what home has according to the record; NONE: no record, so it reads as zeros */
	uint8_t arriving;  /* what a fetch under way will bring */
	uint8_t leaving;   /* what a write under way carries */
	uint8_t waiting;   /* a guest's thread waits: 0, or its event + 1 */
	bool protected;
	bool truth_zero;
	bool fetching, writing;
	bool marked; /* as broken, in the page tables: no fault happens, a signal does */
	bool noted;  /* in the record: it may be marked */
};

enum { WORLDS_MAX = 1 << 16 };

static struct world queue[WORLDS_MAX];
static unsigned count;
static bool used[PAGE_STATES][PAGE_EVENTS];

static void reach(struct world world)
{
	for (unsigned i = 0; i < count; i++)
		if (!memcmp(&queue[i], &world, sizeof world))
			return;
	CHECK(count < WORLDS_MAX);
	queue[count++] = world;
}

static void stale(uint8_t *bytes)
{
	if (*bytes == LATEST)
		*bytes = STALE;
}

static void written(struct world *world, bool zero)
{
	stale(&world->held);
	stale(&world->record);
	stale(&world->arriving);
	stale(&world->leaving);
	stale(&world->here);
	world->truth_zero = zero;
}

/* Do what the engine does for an event. */
static void happen(struct world world, enum page_event event)
{
	struct page_step step = page_step(world.state, event);
	bool woken = false;

	CHECK(step.action != ACTION_ILLEGAL);
	used[world.state][event] = true;
	world.state = step.next;
	if (event == EVENT_DISCARD) {
		/* The guest's latest is now zeros, and the record goes. */
		written(&world, true);
		world.record = NONE;
	}
	if (event == EVENT_STORED || event == EVENT_STORED_STANDBY || event == EVENT_NOT_STORED)
		world.writing = false;
	if (event == EVENT_ARRIVED || event == EVENT_ARRIVED_HOLD || event == EVENT_INVALID || event == EVENT_NOT_FETCHED)
		world.fetching = false;
	switch (step.action) {
	case ACTION_NONE:
	case ACTION_WAIT:
		break;
	case ACTION_WAKE:
		woken = true;
		break;
	case ACTION_ZERO_CLEAN:
	case ACTION_ZERO_DIRTY:
		CHECK(world.here == NONE);
		world.here = world.truth_zero ? LATEST : STALE;
		world.protected = step.action == ACTION_ZERO_CLEAN;
		woken = true;
		break;
	case ACTION_FETCH:
		CHECK(!world.fetching);
		CHECK(world.record != NONE);
		world.fetching = true;
		world.arriving = world.record;
		break;
	case ACTION_CLEAN:
	case ACTION_DIRTY:
		CHECK(world.here == NONE);
		world.here = world.held != NONE ? world.held : world.arriving;
		world.held = NONE;
		world.marked = world.noted = false;
		world.protected = step.action == ACTION_CLEAN;
		woken = true;
		break;
	case ACTION_HOLD:
		world.held = world.arriving;
		break;
	case ACTION_RELEASE:
		world.held = NONE;
		break;
	case ACTION_UNPROTECT:
		CHECK(world.here != NONE);
		world.protected = false;
		woken = true;
		break;
	case ACTION_SEAL:
		CHECK(world.here != NONE && !world.writing);
		world.protected = true;
		world.leaving = world.here;
		world.writing = true;
		break;
	case ACTION_TRIM:
		CHECK(!world.writing && world.record == NONE);
		world.leaving = NONE;
		world.writing = true;
		break;
	case ACTION_COMMIT_KEEP:
		world.record = world.leaving;
		/* fall through */
	case ACTION_KEEP:
		CHECK(world.here != NONE && world.protected);
		world.held = world.here;
		world.here = NONE;
		world.protected = false;
		woken = true;
		break;
	case ACTION_COMMIT_DROP:
		world.record = world.leaving;
		/* fall through */
	case ACTION_DROP:
		if (event == EVENT_IS_ZERO) {
			world.record = NONE;
			world.writing = false;
		}
		world.here = NONE;
		world.protected = false;
		woken = true;
		break;
	case ACTION_COMMIT:
		world.record = world.leaving;
		break;
	case ACTION_POISON:
		CHECK(world.here == NONE);
		world.marked = world.noted = true;
		woken = true;
		break;
	case ACTION_CLEANSE:
		CHECK(world.here == NONE && world.truth_zero);
		world.marked = world.noted = false;
		woken = true;
		break;
	}
	if (!world.fetching)
		world.arriving = NONE;
	if (!world.writing)
		world.leaving = NONE;
	if (woken)
		world.waiting = 0;
	/* Zeros that no store has are the latest wherever the guest's latest is zeros. */
	CHECK(page_resident(world.state) == (world.here != NONE));
	CHECK((world.state == PAGE_HELD || world.state == PAGE_STANDBY) == (world.held != NONE));
	CHECK(world.state != PAGE_STANDBY || world.held == LATEST);
	if (world.state == PAGE_ZERO || world.state == PAGE_FETCH_DROP || world.state == PAGE_WRITE_DROP)
		CHECK(world.truth_zero);
	if (world.state == PAGE_CLEAN || world.state == PAGE_WRITE)
		CHECK(world.protected);
	if (world.state == PAGE_ABSENT || world.state == PAGE_STANDBY || world.state == PAGE_FETCH || world.state == PAGE_LOST ||
	    world.state == PAGE_POISONED || world.state == PAGE_HEAL)
		CHECK(world.record == LATEST);
	/* Nobody is told that memory is broken which is not lost. */
	CHECK(!world.marked || world.noted);
	CHECK(world.noted == (world.state == PAGE_POISONED || world.state == PAGE_HEAL));
	reach(world);
}

/* A thread of the guest takes its next step. A fault is read at any later time, so it is an event of its own below. */
static void guest(struct world world)
{
	struct world next = world;

	if (world.waiting)
		return;
	if (world.marked)
		return;
	if (world.here == NONE) {
		next.waiting = EVENT_READ + 1;
		reach(next);
		next.waiting = EVENT_WRITE + 1;
		reach(next);
	} else {
		CHECK(world.here == LATEST); /* this is what a reader sees */
		if (world.protected) {
			next.waiting = EVENT_PROTECT + 1;
			reach(next);
		} else {
			for (int zero = 0; zero < 2; zero++) {
				next = world;
				written(&next, zero);
				next.here = LATEST;
				reach(next);
			}
		}
	}
}

/* The pager is killed and another one finds the page: resident or not, with or without a record. */
static void killed(struct world world)
{
	struct world next = {.here = world.here, .record = world.record, .truth_zero = world.truth_zero};

	next.state = world.here != NONE	    ? PAGE_DIRTY
		     : world.record == NONE ? PAGE_ZERO
		     : world.noted	    ? PAGE_POISONED
					    : PAGE_ABSENT;
	next.noted = next.state == PAGE_POISONED;
	next.marked = world.marked;
	if (world.here == NONE && world.record == NONE)
		CHECK(world.truth_zero);
	if (world.here == NONE && world.record != NONE)
		CHECK(world.record == LATEST);
	reach(next);
	/* It may die after it noted, and before it marked. */
	next.marked = false;
	reach(next);
}

static void follow(struct world world)
{
	enum page_state state = world.state;

	guest(world);
	killed(world);
	/* Faults of a thread, also of one that was woken since and whose message was already read. */
	for (enum page_event event = EVENT_READ; event <= EVENT_PROTECT; event++)
		happen(world, event);
	happen(world, EVENT_PREFETCH);
	happen(world, EVENT_DISCARD);
	happen(world, EVENT_RETRY);
	if (world.fetching) {
		happen(world, EVENT_ARRIVED);
		if (state != PAGE_FETCH_WRITE && state != PAGE_HEAL && !world.waiting)
			happen(world, EVENT_ARRIVED_HOLD);
		happen(world, EVENT_INVALID);
		happen(world, EVENT_NOT_FETCHED);
	}
	if (state == PAGE_ZERO)
		happen(world, EVENT_TRIM);
	if (state == PAGE_HELD || state == PAGE_STANDBY)
		happen(world, EVENT_UNHOLD);
	if (state == PAGE_LOST)
		happen(world, EVENT_POISON);
	if (state == PAGE_CLEAN && world.record != NONE)
		happen(world, EVENT_STANDBY);
	if (state == PAGE_CLEAN)
		happen(world, world.record == NONE ? EVENT_EVICT_ZERO : EVENT_EVICT);
	if (state == PAGE_DIRTY)
		happen(world, EVENT_EVICT);
	if (state == PAGE_WRITE && world.truth_zero)
		happen(world, EVENT_IS_ZERO);
	if (state == PAGE_WRITE)
		happen(world, EVENT_STORED_STANDBY);
	if (world.writing) {
		happen(world, EVENT_STORED);
		happen(world, EVENT_NOT_STORED);
	}
	/* Nobody waits for nothing: the fault itself, once read, or what is under way gets the thread on. */
	if (world.waiting) {
		struct page_step step = page_step(state, world.waiting - 1);

		CHECK(step.action != ACTION_NONE);
		if (step.action == ACTION_WAIT)
			CHECK(world.fetching || state == PAGE_LOST);
	}
}

int main(void)
{
	unsigned pairs = 0, legal = 0;

	reach((struct world){.state = PAGE_ZERO, .truth_zero = true});
	for (unsigned i = 0; i < count; i++)
		follow(queue[i]);
	for (int state = 0; state < PAGE_STATES; state++)
		for (int event = 0; event < PAGE_EVENTS; event++) {
			bool allowed = page_step(state, event).action != ACTION_ILLEGAL;

			legal += allowed;
			pairs++;
			if (allowed != used[state][event])
				fprintf(stderr, "%s with event %d: %s\n", page_state_name(state), event,
					allowed ? "in the table, never happens" : "happens, not in the table");
			CHECK(allowed == used[state][event]);
		}
	printf("%u situations, %u of %u pairs of state and event are legal\n", count, legal, pairs);
	return 0;
}
