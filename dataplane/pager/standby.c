#include "standby.h"

#include <string.h>
#include <sys/mman.h>

/* Idle places that keep their memory: so many, and this share of the limit. */
enum { WARM_MIN = 16, WARM_SHARE = 4 };

static void *reserve(size_t bytes)
{
	void *place = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return place == MAP_FAILED ? NULL : place;
}

bool standby_init(struct standby *standby, uint32_t room)
{
	memset(standby, 0, sizeof *standby);
	standby->newest = standby->oldest = standby->warm = standby->cold = STANDBY_NONE;
	if (!room)
		return false;
	standby->slots = reserve(room * sizeof *standby->slots);
	if (!standby->slots)
		return false;
	standby->bytes = reserve((size_t)room * STANDBY_PAGE);
	if (!standby->bytes) {
		munmap(standby->slots, room * sizeof *standby->slots);
		standby->slots = NULL;
		return false;
	}
	/* The guest's bytes are nobody's business, and single pages are what is given back. */
	madvise(standby->bytes, (size_t)room * STANDBY_PAGE, MADV_DONTDUMP);
	madvise(standby->bytes, (size_t)room * STANDBY_PAGE, MADV_NOHUGEPAGE);
	standby->room = room;
	return true;
}

void standby_close(struct standby *standby)
{
	if (standby->bytes)
		munmap(standby->bytes, (size_t)standby->room * STANDBY_PAGE);
	if (standby->slots)
		munmap(standby->slots, standby->room * sizeof *standby->slots);
	memset(standby, 0, sizeof *standby);
}

char *standby_bytes(const struct standby *standby, uint32_t slot)
{
	return standby->bytes + (size_t)slot * STANDBY_PAGE;
}

static uint32_t pop(struct standby *standby, uint32_t *stack)
{
	uint32_t slot = *stack;

	if (slot != STANDBY_NONE)
		*stack = standby->slots[slot].older;
	return slot;
}

static void push(struct standby *standby, uint32_t *stack, uint32_t slot)
{
	standby->slots[slot].older = *stack;
	*stack = slot;
}

uint32_t standby_get(struct standby *standby)
{
	uint32_t slot;

	if (standby->used >= standby->limit)
		return STANDBY_NONE;
	slot = pop(standby, &standby->warm);
	if (slot != STANDBY_NONE)
		standby->warm_count--;
	else
		slot = pop(standby, &standby->cold);
	if (slot == STANDBY_NONE && standby->fresh < standby->room)
		slot = standby->fresh++;
	standby->used += slot != STANDBY_NONE;
	return slot;
}

void standby_list(struct standby *standby, uint32_t slot, uint32_t page)
{
	standby->slots[slot] = (struct standby_slot){page, STANDBY_NONE, standby->newest};
	if (standby->newest != STANDBY_NONE)
		standby->slots[standby->newest].newer = slot;
	else
		standby->oldest = slot;
	standby->newest = slot;
	standby->listed++;
}

void standby_take(struct standby *standby, uint32_t slot)
{
	struct standby_slot *taken = &standby->slots[slot];

	if (taken->newer != STANDBY_NONE)
		standby->slots[taken->newer].older = taken->older;
	else
		standby->newest = taken->older;
	if (taken->older != STANDBY_NONE)
		standby->slots[taken->older].newer = taken->newer;
	else
		standby->oldest = taken->newer;
	standby->listed--;
}

uint32_t standby_oldest(const struct standby *standby)
{
	return standby->oldest;
}

void standby_free(struct standby *standby, uint32_t slot)
{
	push(standby, &standby->warm, slot);
	standby->warm_count++;
	standby->used--;
}

uint32_t standby_idle(struct standby *standby, uint32_t *slots, uint32_t most)
{
	uint32_t count = 0;

	while (count < most && standby->warm_count > WARM_MIN + standby->limit / WARM_SHARE) {
		slots[count++] = pop(standby, &standby->warm);
		standby->warm_count--;
	}
	return count;
}

void standby_cool(const struct standby *standby, const uint32_t *slots, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		madvise(standby_bytes(standby, slots[i]), STANDBY_PAGE, MADV_DONTNEED);
}

void standby_cooled(struct standby *standby, const uint32_t *slots, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		push(standby, &standby->cold, slots[i]);
}
