/* Bytes of pages that left the guest's memory a moment ago: a use of one is a fault without a fetch, and tells the policy
 * that the page is in use, which it has no other way to learn.
 *
 * Places are slots of one range of addresses. A slot is free, or taken by a page that comes or goes, or listed, in the
 * order in which pages left. Freed slots are used again first; of those that lie idle the memory goes back to the system.
 * Nothing here needs to outlive the pager: a store has these pages too.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { STANDBY_NONE = UINT32_MAX, STANDBY_PAGE = 4096 };

struct standby_slot {
	uint32_t page;
	uint32_t newer, older; /* of a free one: `older` is the next that is free */
};

struct standby {
	char *bytes;
	struct standby_slot *slots;
	uint32_t room;	/* slots that there may ever be */
	uint32_t limit; /* that may be in use now */
	uint32_t used, listed;
	uint32_t fresh; /* the first that was never used */
	uint32_t newest, oldest;
	uint32_t warm, warm_count; /* free, with memory */
	uint32_t cold;		   /* free, without */
};

/* Reserve addresses for `room` pages. False: there is no room, and nothing is ever on standby. */
bool standby_init(struct standby *standby, uint32_t room);

void standby_close(struct standby *standby);

/* A place for a page, or STANDBY_NONE where all are in use. */
uint32_t standby_get(struct standby *standby);

char *standby_bytes(const struct standby *standby, uint32_t slot);

/* The page is in its place: list it as the newest. */
void standby_list(struct standby *standby, uint32_t slot, uint32_t page);

/* Take a page out of the list; its place stays in use. */
void standby_take(struct standby *standby, uint32_t slot);

/* The place of the page that left first, or STANDBY_NONE. */
uint32_t standby_oldest(const struct standby *standby);

void standby_free(struct standby *standby, uint32_t slot);

/* Take up to `most` places that lie idle beyond what is likely to be needed soon. They go back by standby_cooled() when
 * their memory was given up by standby_cool(), which needs no lock. */
uint32_t standby_idle(struct standby *standby, uint32_t *slots, uint32_t most);
void standby_cool(const struct standby *standby, const uint32_t *slots, uint32_t count);
void standby_cooled(struct standby *standby, const uint32_t *slots, uint32_t count);
