#include "policy.h"

#include <string.h>

enum { LAPS_MAX = 3, TRIAL_SHARE = 4 };

void policy_init(struct policy *policy, struct policy_node *nodes, uint32_t budget)
{
	memset(policy, 0, sizeof *policy);
	policy->nodes = nodes;
	policy->budget = budget;
	for (int i = QUEUE_TRIAL; i <= QUEUE_MAIN; i++)
		policy->queues[i].head = policy->queues[i].tail = POLICY_NONE;
}

static void push(struct policy *policy, enum policy_queue queue, uint32_t page)
{
	struct policy_list *list = &policy->queues[queue];
	struct policy_node *node = &policy->nodes[page];

	node->queue = queue;
	node->previous = POLICY_NONE;
	node->next = list->head;
	if (list->head != POLICY_NONE)
		policy->nodes[list->head].previous = page;
	else
		list->tail = page;
	list->head = page;
	list->count++;
}

static void take(struct policy *policy, uint32_t page)
{
	struct policy_node *node = &policy->nodes[page];
	struct policy_list *list = &policy->queues[node->queue];

	if (node->previous != POLICY_NONE)
		policy->nodes[node->previous].next = node->next;
	else
		list->head = node->next;
	if (node->next != POLICY_NONE)
		policy->nodes[node->next].previous = node->previous;
	else
		list->tail = node->previous;
	list->count--;
	node->queue = QUEUE_NONE;
}

void policy_insert(struct policy *policy, uint32_t page, bool demand)
{
	struct policy_node *node = &policy->nodes[page];
	uint32_t ago = (policy->stamp - (uint32_t)node->next) & POLICY_NONE;
	bool refault = node->ghost && demand && ago <= policy->budget;

	if (node->queue)
		return;
	if (refault) {
		policy->refaults++;
		node->laps = node->laps < LAPS_MAX ? node->laps + 1U : LAPS_MAX;
	} else if (node->laps) {
		node->laps--;
	}
	node->ghost = 0;
	node->asked = demand;
	node->left = node->laps;
	push(policy, refault ? QUEUE_MAIN : QUEUE_TRIAL, page);
}

uint32_t policy_victim(struct policy *policy)
{
	struct policy_list *trial = &policy->queues[QUEUE_TRIAL], *main = &policy->queues[QUEUE_MAIN];
	struct policy_node *node;
	uint32_t page;

	for (;;) {
		bool from_trial = trial->count && (!main->count || trial->count > policy->budget / TRIAL_SHARE);

		page = from_trial ? trial->tail : main->tail;
		if (page == POLICY_NONE)
			return page;
		node = &policy->nodes[page];
		take(policy, page);
		/* The first lap is the one that every page of the main queue has. */
		if (from_trial || node->left <= 1)
			break;
		node->left--;
		push(policy, QUEUE_MAIN, page);
	}
	policy->stamp = (policy->stamp + 1) & POLICY_NONE;
	node->next = policy->stamp;
	node->previous = 0;
	node->ghost = 1;
	return page;
}

void policy_return(struct policy *policy, uint32_t page)
{
	struct policy_node *node = &policy->nodes[page];

	if (node->queue)
		return;
	node->ghost = 0;
	node->left = node->laps;
	push(policy, QUEUE_MAIN, page);
}

void policy_forget(struct policy *policy, uint32_t page)
{
	static const struct policy_node nothing;

	if (policy->nodes[page].queue)
		take(policy, page);
	/* A page that never was here has no memory for what is known of it. */
	if (memcmp(&policy->nodes[page], &nothing, sizeof nothing) != 0)
		policy->nodes[page] = nothing;
}

bool policy_asked(const struct policy *policy, uint32_t page)
{
	return policy->nodes[page].asked;
}

void policy_note(struct policy *policy, uint32_t page, uint32_t number)
{
	policy->nodes[page].previous = number & POLICY_NONE;
}

uint32_t policy_noted(const struct policy *policy, uint32_t page)
{
	return policy->nodes[page].previous;
}

void policy_leave(struct policy *policy, uint32_t page)
{
	if (policy->nodes[page].queue)
		take(policy, page);
}

unsigned policy_heat(const struct policy *policy, uint32_t page)
{
	const struct policy_node *node = &policy->nodes[page];
	uint32_t ago = (policy->stamp - (uint32_t)node->next) & POLICY_NONE;

	if (node->queue || !node->ghost)
		return 0;
	return 1 + 4 * node->laps + (ago <= policy->budget ? 2 : 0) + (ago <= policy->budget / TRIAL_SHARE ? 1 : 0);
}

uint32_t policy_count(const struct policy *policy)
{
	return policy->queues[QUEUE_TRIAL].count + policy->queues[QUEUE_MAIN].count;
}
