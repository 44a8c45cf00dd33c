/* Plays a trace of page uses (page_recorder.c's records, on standard input) to eviction policies at several sizes of the cache.
 *
 *   policy-sim PERCENT...
 *
 * Prints a line for each policy and size: `NAME PERCENT BUDGET USES PAGES MISSES CHEAP WASTED`, MISSES what has to be fetched
 * and CHEAP the faults that found their bytes on this host. Another number is what was fetched without need.
 *
 *  - pager: what vmcoal-pager does, by its own code (policy.c). It learns of a use only if the page is not here.
 *  - ahead: the same with the prefetcher (stream.c), on a link without latency.
 *  - fifo: the least that a pager could do.
 *  - standby: the pager's, with a part of the cache for pages on their way out: they are not mapped any more but still
 *    here, and their use is a fault without a fetch, from which the policy learns (as VMS did).
 *  - lru, s3fifo: they see every use, as no pager does: what knowing them is worth.
 *  - belady: evicts what is wanted last, which nobody can know: the fewest misses that are possible.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy.h"
#include "stream.h"

enum { STANDBY_SHARE = 8 };

static uint32_t *trace, length, pages;

struct result {
	uint32_t misses, cheap, wasted;
};

static void *zeros(size_t count, size_t size)
{
	void *block = calloc(count + 1, size);

	if (!block) {
		perror("calloc");
		exit(1);
	}
	return block;
}

static struct result play_pager(uint32_t budget)
{
	struct policy_node *nodes = zeros(pages, sizeof *nodes);
	bool *here = zeros(pages, 1);
	struct result result = {0};
	struct policy policy;

	policy_init(&policy, nodes, budget);
	for (uint32_t i = 0; i < length; i++) {
		if (here[trace[i]])
			continue;
		result.misses++;
		if (policy_count(&policy) >= budget)
			here[policy_victim(&policy)] = false;
		here[trace[i]] = true;
		policy_insert(&policy, trace[i], true);
	}
	free(nodes);
	free(here);
	return result;
}

/* As the engine does (engine.h, table.c): held pages are a ring, the window is at most a quarter of the cache. */
static struct result play_ahead(uint32_t budget)
{
	enum { AWAY, HERE, GUESSED, HELD, HELD_MAX = 512 };
	struct policy_node *nodes = zeros(pages, sizeof *nodes);
	uint8_t *state = zeros(pages, 1);
	uint32_t held[HELD_MAX], next = 0, room = budget / 16 < HELD_MAX ? budget / 16 + 1 : HELD_MAX;
	struct result result = {0};
	struct streams streams;
	struct policy policy;

	memset(held, 0xff, sizeof held);
	policy_init(&policy, nodes, budget);
	streams_init(&streams, pages, budget / 4 < 8192 ? budget / 4 : 8192);
	for (uint32_t i = 0; i < length; i++) {
		struct stream_wish wishes[STREAM_WISHES];
		uint32_t page = trace[i];
		unsigned count;

		if (state[page] == HERE || state[page] == GUESSED) {
			state[page] = HERE;
			continue;
		}
		if (state[page] == HELD)
			result.cheap++;
		else
			result.misses++;
		count = streams_fault(&streams, page, false, state[page] == HELD ? FOUND_MARKER : FOUND_ABSENT, wishes);
		state[page] = HERE;
		policy_insert(&policy, page, true);
		for (unsigned n = 0; n < count; n++)
			for (uint32_t k = 0; k < wishes[n].count; k++) {
				uint32_t other = wishes[n].first + (uint32_t)((int32_t)k * wishes[n].step);

				if (state[other] != AWAY)
					continue;
				if (k != wishes[n].marker) {
					state[other] = GUESSED;
					policy_insert(&policy, other, false);
					continue;
				}
				state[other] = HELD;
				if (held[next] != UINT32_MAX && state[held[next]] == HELD) {
					state[held[next]] = AWAY;
					result.wasted++;
					streams_unused(&streams, held[next]);
				}
				held[next] = other;
				next = (next + 1) % room;
			}
		while (policy_count(&policy) > budget) {
			uint32_t old = policy_victim(&policy);

			result.wasted += state[old] == GUESSED;
			state[old] = AWAY;
		}
	}
	free(nodes);
	free(state);
	return result;
}

/* A list of pages, newest first. */
struct list {
	uint32_t *next, *previous; /* number `pages` is the head */
	uint32_t count;
};

static struct list list_new(void)
{
	struct list list = {zeros(pages, sizeof(uint32_t)), zeros(pages, sizeof(uint32_t)), 0};

	list.next[pages] = list.previous[pages] = pages;
	return list;
}

static void list_free(struct list *list)
{
	free(list->next);
	free(list->previous);
}

static void list_push(struct list *list, uint32_t page)
{
	list->next[page] = list->next[pages];
	list->previous[page] = pages;
	list->previous[list->next[page]] = page;
	list->next[pages] = page;
	list->count++;
}

static void list_take(struct list *list, uint32_t page)
{
	list->next[list->previous[page]] = list->next[page];
	list->previous[list->next[page]] = list->previous[page];
	list->count--;
}

static uint32_t list_pop(struct list *list)
{
	uint32_t page = list->previous[pages];

	list_take(list, page);
	return page;
}

/* One list; `again`: a use brings a page to its head. */
static struct result play_list(uint32_t budget, bool again)
{
	struct list list = list_new();
	bool *here = zeros(pages, 1);
	struct result result = {0};

	for (uint32_t i = 0; i < length; i++) {
		uint32_t page = trace[i];

		if (here[page]) {
			if (again) {
				list_take(&list, page);
				list_push(&list, page);
			}
			continue;
		}
		result.misses++;
		if (list.count == budget)
			here[list_pop(&list)] = false;
		here[page] = true;
		list_push(&list, page);
	}
	list_free(&list);
	free(here);
	return result;
}

static struct result play_fifo(uint32_t budget)
{
	return play_list(budget, false);
}

static struct result play_lru(uint32_t budget)
{
	return play_list(budget, true);
}

static struct result play_standby(uint32_t budget)
{
	enum { AWAY, MAPPED, STANDBY };
	uint32_t share = budget / STANDBY_SHARE ? budget / STANDBY_SHARE : 1;
	struct policy_node *nodes = zeros(pages, sizeof *nodes);
	struct list standby = list_new();
	uint8_t *state = zeros(pages, 1);
	struct result result = {0};
	struct policy policy;

	policy_init(&policy, nodes, budget - share);
	for (uint32_t i = 0; i < length; i++) {
		uint32_t page = trace[i];

		if (state[page] == MAPPED)
			continue;
		if (state[page] == STANDBY) {
			result.cheap++;
			list_take(&standby, page);
		} else {
			result.misses++;
		}
		if (policy_count(&policy) + standby.count >= budget)
			state[list_pop(&standby)] = AWAY;
		state[page] = MAPPED;
		policy_insert(&policy, page, true);
		if (policy_count(&policy) > budget - share) {
			uint32_t old = policy_victim(&policy);

			state[old] = STANDBY;
			list_push(&standby, old);
		}
	}
	list_free(&standby);
	free(nodes);
	free(state);
	return result;
}

static struct result play_s3fifo(uint32_t budget)
{
	enum { AWAY, SMALL, MAIN };
	struct list small = list_new(), main = list_new(), ghost = list_new();
	uint8_t *state = zeros(pages, 1), *uses = zeros(pages, 1);
	bool *remembered = zeros(pages, 1);
	struct result result = {0};

	for (uint32_t i = 0; i < length; i++) {
		uint32_t page = trace[i];

		if (state[page]) {
			uses[page] += uses[page] < 3;
			continue;
		}
		result.misses++;
		while (small.count + main.count >= budget) {
			uint32_t old;

			if (small.count > budget / 10 || !main.count) {
				old = list_pop(&small);
				if (uses[old] > 1) {
					state[old] = MAIN;
					uses[old] = 0;
					list_push(&main, old);
					continue;
				}
				if (ghost.count >= budget)
					remembered[list_pop(&ghost)] = false;
				list_push(&ghost, old);
				remembered[old] = true;
			} else {
				old = list_pop(&main);
				if (uses[old]) {
					uses[old]--;
					list_push(&main, old);
					continue;
				}
			}
			state[old] = AWAY;
		}
		uses[page] = 0;
		state[page] = remembered[page] ? MAIN : SMALL;
		if (remembered[page]) {
			list_take(&ghost, page);
			remembered[page] = false;
		}
		list_push(state[page] == MAIN ? &main : &small, page);
	}
	list_free(&small);
	list_free(&main);
	list_free(&ghost);
	free(state);
	free(uses);
	free(remembered);
	return result;
}

/* A heap of (when it is used next, page), the last on top; what a later use made void stays until it comes up. */
struct soon {
	uint32_t when, page;
};

static void sift_in(struct soon *heap, uint32_t count, struct soon entry)
{
	uint32_t at = count;

	for (; at && heap[(at - 1) / 2].when < entry.when; at = (at - 1) / 2)
		heap[at] = heap[(at - 1) / 2];
	heap[at] = entry;
}

static struct soon sift_out(struct soon *heap, uint32_t count)
{
	struct soon top = heap[0], entry = heap[count - 1];
	uint32_t at = 0, child;

	for (; (child = 2 * at + 1) < count - 1; at = child) {
		child += child + 1 < count - 1 && heap[child + 1].when > heap[child].when;
		if (heap[child].when <= entry.when)
			break;
		heap[at] = heap[child];
	}
	heap[at] = entry;
	return top;
}

static struct result play_belady(uint32_t budget)
{
	uint32_t *next = zeros(length, sizeof *next), *wanted = zeros(pages, sizeof *wanted), count = 0, here_count = 0;
	struct soon *heap = zeros(length, sizeof *heap);
	bool *here = zeros(pages, 1);
	struct result result = {0};

	memset(wanted, 0xff, pages * sizeof *wanted);
	for (uint32_t i = length; i--; wanted[trace[i]] = i)
		next[i] = wanted[trace[i]];
	for (uint32_t i = 0; i < length; i++) {
		uint32_t page = trace[i];

		if (!here[page]) {
			result.misses++;
			while (here_count == budget) {
				struct soon last = sift_out(heap, count--);

				if (here[last.page] && wanted[last.page] == last.when) {
					here[last.page] = false;
					here_count--;
				}
			}
			here[page] = true;
			here_count++;
		}
		wanted[page] = next[i];
		sift_in(heap, count++, (struct soon){next[i], page});
	}
	free(next);
	free(wanted);
	free(heap);
	free(here);
	return result;
}

static const struct {
	const char *name;
	struct result (*play)(uint32_t budget);
} policies[] = {
	{"pager", play_pager}, {"ahead", play_ahead}, {"fifo", play_fifo},	{"standby", play_standby}, {"lru", play_lru},
	{"s3fifo", play_s3fifo}, {"belady", play_belady},
};

/* Tables are as large as the highest page needs; budgets are shares of the pages that are used. */
static uint32_t count_pages(void)
{
	uint32_t count = 0;
	bool *used;

	for (uint32_t i = 0; i < length; i++)
		pages = trace[i] >= pages ? trace[i] + 1 : pages;
	used = zeros(pages, 1);
	for (uint32_t i = 0; i < length; i++) {
		count += !used[trace[i]];
		used[trace[i]] = true;
	}
	free(used);
	return count;
}

int main(int argc, char **argv)
{
	uint32_t room = 1 << 16, used;
	size_t got;

	trace = zeros(room, sizeof *trace);
	while ((got = fread(trace + length, sizeof *trace, room - length, stdin))) {
		length += (uint32_t)got;
		if (length < room)
			continue;
		room *= 2;
		trace = realloc(trace, room * sizeof *trace);
		if (!trace)
			return 1;
	}
	used = count_pages();
	for (int i = 1; i < argc; i++)
		for (size_t n = 0; n < sizeof policies / sizeof *policies; n++) {
			uint32_t budget = (uint32_t)((uint64_t)used * (uint64_t)atoi(argv[i]) / 100);
			struct result result = policies[n].play(budget ? budget : 1);

			printf("%s %s %u %u %u %u %u %u\n", policies[n].name, argv[i], budget, length, used, result.misses,
			       result.cheap, result.wasted);
		}
	return 0;
}
