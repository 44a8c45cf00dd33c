/* Which page leaves the cache: two queues steered by re-faults.
 *
 * The pager sees no accesses to a page that is here, only faults on one that is not: no accessed bit reaches it, and
 * scanning for one would cost more than it tells. What it learns for nothing is that a page which it evicted was wanted
 * again, and how soon. So, after 2Q (Johnson and Shasha, VLDB 1994) and S3-FIFO (Yang et al., SOSP 2023):
 *
 *  - a page comes into the *trial* queue, a FIFO. A scan passes through it and harms nothing else.
 *  - a page that faults again within a cache's worth of evictions would have been kept by a larger share of the cache:
 *    it goes into the *main* queue.
 *  - each such re-fault earns a page one lap more in the main queue, up to three; at the tail a page with laps left
 *    goes round again, as CLOCK does with accessed ones, and one without leaves.
 *
 * The trial queue is a quarter of the cache. 2Q's advice for it is the same; S3-FIFO's tenth needs accesses seen.
 * The links of a page that is not here hold when it was evicted, so ghost queues cost nothing: eight bytes for a page.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { POLICY_ID_BITS = 28 };

#define POLICY_NONE ((1U << POLICY_ID_BITS) - 1)

/* Of a page that is here: its neighbours. Of another: `next` is the stamp of its eviction, `previous` what was noted of it.
 * All zeros: never here. */
struct policy_node {
	uint64_t next : POLICY_ID_BITS;
	uint64_t previous : POLICY_ID_BITS;
	uint64_t queue : 2; /* enum policy_queue */
	uint64_t laps : 2;  /* earned */
	uint64_t left : 2;
	uint64_t ghost : 1; /* evicted, and not discarded since */
	uint64_t asked : 1; /* when it came last a fault wanted it */
};

enum policy_queue { QUEUE_NONE, QUEUE_TRIAL, QUEUE_MAIN };

struct policy_list {
	uint32_t head; /* the newest */
	uint32_t tail;
	uint32_t count;
};

struct policy {
	struct policy_node *nodes; /* by page */
	struct policy_list queues[3];
	uint32_t stamp; /* evictions so far, in as many bits as a node has for it */
	uint32_t budget;
	uint64_t refaults;
};

/* `nodes` are zeros; `budget` is in pages. */
void policy_init(struct policy *policy, struct policy_node *nodes, uint32_t budget);

/* A page is here from now on. `demand`: a fault wanted it, so it counts as re-fault if it was evicted lately. */
void policy_insert(struct policy *policy, uint32_t page, bool demand);

/* Choose a page and take it out as evicted; POLICY_NONE if there is none. */
uint32_t policy_victim(struct policy *policy);

/* A victim could not be evicted: it was used meanwhile. */
void policy_return(struct policy *policy, uint32_t page);

/* The page is gone, and what is known of it is void. */
void policy_forget(struct policy *policy, uint32_t page);

/* Whether a fault wanted a page when it came last. */
bool policy_asked(const struct policy *policy, uint32_t page);

/* A number to keep with a page that is not in a queue, until it is in one again. */
void policy_note(struct policy *policy, uint32_t page, uint32_t number);
uint32_t policy_noted(const struct policy *policy, uint32_t page);

/* A page is here to stay: it is no victim any more. */
void policy_leave(struct policy *policy, uint32_t page);

/* How much a page that is not here is worth having: most if it was wanted often and left lately, 0 if nothing is known. */
unsigned policy_heat(const struct policy *policy, uint32_t page);

/* Pages in the queues. */
uint32_t policy_count(const struct policy *policy);
