/* Places for pages on standby: their order, their limit, and that idle ones give their memory back. */
#include "standby.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "check.h"

enum { ROOM = 256, LIMIT = 100 };

static unsigned resident(const struct standby *standby)
{
	unsigned char seen[ROOM];
	unsigned count = 0;

	CHECK(!mincore(standby->bytes, (size_t)ROOM * STANDBY_PAGE, seen));
	for (int i = 0; i < ROOM; i++)
		count += seen[i] & 1;
	return count;
}

static void order(void)
{
	struct standby standby;
	uint32_t slots[LIMIT];

	CHECK(standby_init(&standby, ROOM));
	CHECK(standby_get(&standby) == STANDBY_NONE);
	standby.limit = LIMIT;
	CHECK(standby_oldest(&standby) == STANDBY_NONE);
	for (uint32_t i = 0; i < LIMIT; i++) {
		slots[i] = standby_get(&standby);
		CHECK(slots[i] != STANDBY_NONE);
		memset(standby_bytes(&standby, slots[i]), (int)i + 1, STANDBY_PAGE);
		standby_list(&standby, slots[i], 1000 + i);
	}
	CHECK(standby_get(&standby) == STANDBY_NONE);
	CHECK(standby.listed == LIMIT && standby.used == LIMIT);
	/* From the middle, the newest and the oldest. */
	standby_take(&standby, slots[50]);
	standby_take(&standby, slots[LIMIT - 1]);
	standby_take(&standby, slots[0]);
	CHECK(standby.listed == LIMIT - 3 && standby.used == LIMIT);
	CHECK(standby_get(&standby) == STANDBY_NONE);
	CHECK(standby_bytes(&standby, slots[50])[STANDBY_PAGE - 1] == 51);
	standby_free(&standby, slots[50]);
	standby_list(&standby, slots[0], 1000);
	for (uint32_t i = 1; i < LIMIT - 1; i++) {
		uint32_t slot = standby_oldest(&standby);

		if (i == 50)
			continue;
		CHECK(standby.slots[slot].page == 1000 + i && slot == slots[i]);
		CHECK(standby_bytes(&standby, slot)[0] == (char)(i + 1));
		standby_take(&standby, slot);
		standby_free(&standby, slot);
	}
	CHECK(standby_oldest(&standby) == slots[0]);
	standby_take(&standby, slots[0]);
	CHECK(standby_oldest(&standby) == STANDBY_NONE && !standby.listed && standby.used == 2);
	standby_close(&standby);
}

static void memory(void)
{
	struct standby standby;
	uint32_t slots[ROOM], idle[ROOM], count;

	CHECK(standby_init(&standby, ROOM));
	standby.limit = ROOM + 1;
	for (uint32_t i = 0; i < ROOM; i++)
		*standby_bytes(&standby, slots[i] = standby_get(&standby)) = 1;
	/* More than there ever may be. */
	CHECK(standby_get(&standby) == STANDBY_NONE);
	CHECK(resident(&standby) == ROOM);
	CHECK(!standby_idle(&standby, idle, ROOM));
	for (uint32_t i = 0; i < ROOM; i++)
		standby_free(&standby, slots[i]);
	standby.limit = 0;
	count = standby_idle(&standby, idle, ROOM);
	CHECK(count > ROOM / 2 && count < ROOM);
	standby_cool(&standby, idle, count);
	standby_cooled(&standby, idle, count);
	CHECK(resident(&standby) == ROOM - count);
	CHECK(!standby_idle(&standby, idle, ROOM));
	/* All of them are there again, those with memory first. */
	standby.limit = ROOM;
	for (uint32_t i = 0; i < ROOM; i++) {
		slots[i] = standby_get(&standby);
		CHECK(slots[i] < ROOM);
		if (i < ROOM - count)
			CHECK(*standby_bytes(&standby, slots[i]) == 1);
		for (uint32_t n = 0; n < i; n++)
			CHECK(slots[n] != slots[i]);
	}
	CHECK(standby_get(&standby) == STANDBY_NONE);
	standby_close(&standby);
}

static void nowhere(void)
{
	struct standby standby;

	CHECK(!standby_init(&standby, 0));
	standby.limit = 10;
	CHECK(standby_get(&standby) == STANDBY_NONE);
	CHECK(standby_oldest(&standby) == STANDBY_NONE);
	standby_close(&standby);
}

int main(void)
{
	order();
	memory();
	nowhere();
	return 0;
}
