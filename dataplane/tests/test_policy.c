/* The eviction policy: its queues, and its misses on traces beside FIFO's and the fewest that are possible (Belady). */
#include "policy.h"

#include <limits.h>

#include "check.h"

enum { PAGES = 4096, LENGTH = 200000 };

static struct policy_node nodes[PAGES];
static uint32_t trace[LENGTH], after[LENGTH];
static uint64_t seed;

static uint32_t number(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 11) % below);
}

/* About Zipf's law with exponent 1: a random power of two, then a random page below it, scattered over the memory. */
static uint32_t skewed(void)
{
	uint32_t below = 1U << (1 + number(12));

	return (number(below) * 2654435761U) % PAGES;
}

static unsigned misses_policy(uint32_t budget)
{
	static bool here[PAGES];
	struct policy policy;
	unsigned misses = 0;

	memset(here, 0, sizeof here);
	memset(nodes, 0, sizeof nodes);
	policy_init(&policy, nodes, budget);
	for (int i = 0; i < LENGTH; i++) {
		uint32_t page = trace[i];

		if (here[page])
			continue; /* an access that the pager does not see */
		misses++;
		if (policy_count(&policy) == budget)
			here[policy_victim(&policy)] = false;
		here[page] = true;
		policy_insert(&policy, page, true);
		CHECK(policy_count(&policy) <= budget);
	}
	return misses;
}

static unsigned misses_fifo(uint32_t budget)
{
	static bool here[PAGES];
	static uint32_t queue[PAGES];
	unsigned misses = 0, next = 0, filled = 0;

	memset(here, 0, sizeof here);
	for (int i = 0; i < LENGTH; i++) {
		if (here[trace[i]])
			continue;
		misses++;
		if (filled == budget)
			here[queue[next]] = false;
		else
			filled++;
		queue[next] = trace[i];
		here[trace[i]] = true;
		next = (next + 1) % budget;
	}
	return misses;
}

/* Evict what is wanted last: a scan of what is here, which is quick enough for this. */
static unsigned misses_belady(uint32_t budget)
{
	static uint32_t wanted[PAGES], here[PAGES], place[PAGES];
	unsigned misses = 0, count = 0;

	memset(place, 0xff, sizeof place);
	memset(wanted, 0xff, sizeof wanted);
	for (int i = LENGTH; i--; wanted[trace[i]] = (uint32_t)i)
		after[i] = wanted[trace[i]];
	for (int i = 0; i < LENGTH; i++) {
		uint32_t page = trace[i], last = 0;

		wanted[page] = after[i];
		if (place[page] != UINT32_MAX)
			continue;
		misses++;
		if (count < budget) {
			last = count++;
		} else {
			for (uint32_t at = 1; at < count; at++)
				if (wanted[here[at]] > wanted[here[last]])
					last = at;
			place[here[last]] = UINT32_MAX;
		}
		here[last] = page;
		place[page] = last;
	}
	return misses;
}

static void uniform_skew(void)
{
	for (int i = 0; i < LENGTH; i++)
		trace[i] = skewed();
}

/* A working set of half the cache beside a reader that never comes back. */
static void hot_and_scan(void)
{
	for (int i = 0, scan = 0; i < LENGTH; i++)
		trace[i] = i % 3 ? number(500) : 500 + (uint32_t)(scan++ % (PAGES - 500));
}

static void skew_and_scan(void)
{
	for (int i = 0, scan = 0; i < LENGTH; i++)
		trace[i] = (i / 2000) % 4 == 3 ? (uint32_t)(scan++ % PAGES) : skewed();
}

/* The interest moves on: what was hot is no more. */
static void phases(void)
{
	for (int i = 0; i < LENGTH; i++)
		trace[i] = ((uint32_t)(i / 40000) * 800 + (number(4) ? number(600) : number(1800))) % PAGES;
}

static void loop(void)
{
	for (int i = 0; i < LENGTH; i++)
		trace[i] = (uint32_t)i % 1300;
}

static void random_pages(void)
{
	for (int i = 0; i < LENGTH; i++)
		trace[i] = number(PAGES);
}

/* `most`: the share of FIFO's misses that are allowed, in percent. */
static void compare(const char *name, void (*make)(void), uint32_t budget, unsigned most)
{
	unsigned ours, fifo, best;

	seed = 88172645463325252ULL;
	make();
	ours = misses_policy(budget);
	fifo = misses_fifo(budget);
	best = misses_belady(budget);
	printf("%-14s cache %4u: misses %6u, FIFO %6u (%.2f), Belady %6u (%.2f)\n", name, budget, ours, fifo,
	       (double)ours / fifo, best, (double)best / fifo);
	CHECK(ours >= best);
	CHECK(ours * 100ULL <= (uint64_t)fifo * most);
}

static void queues_stay_whole(void)
{
	struct policy policy;
	static bool here[PAGES];
	uint32_t count = 0;

	memset(nodes, 0, sizeof nodes);
	policy_init(&policy, nodes, 300);
	CHECK(policy_victim(&policy) == POLICY_NONE);
	seed = 1;
	for (int i = 0; i < LENGTH; i++) {
		uint32_t page = number(PAGES);

		switch (number(4)) {
		case 0:
			policy_insert(&policy, page, number(2));
			count += !here[page];
			here[page] = true;
			break;
		case 1:
			policy_forget(&policy, page);
			count -= here[page];
			here[page] = false;
			break;
		case 2:
			page = policy_victim(&policy);
			CHECK((page == POLICY_NONE) == !count);
			if (page == POLICY_NONE)
				break;
			CHECK(here[page]);
			if (number(2)) {
				policy_return(&policy, page);
			} else {
				here[page] = false;
				count--;
			}
			break;
		case 3:
			policy.budget = 1 + number(600);
			break;
		}
		CHECK(policy_count(&policy) == count);
	}
}

int main(void)
{
	CHECK(sizeof(struct policy_node) == 8);
	queues_stay_whole();
	compare("skew", uniform_skew, 400, 92);
	compare("skew", uniform_skew, 1000, 92);
	compare("hot and scan", hot_and_scan, 1000, 70);
	compare("skew and scan", skew_and_scan, 1000, 92);
	compare("phases", phases, 1000, 102);
	compare("loop", loop, 1000, 100);
	compare("random", random_pages, 1000, 102);
	return 0;
}
