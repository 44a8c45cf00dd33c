/* Lost pages that are not waited for: whoever touches one gets SIGBUS, as from broken memory (UFFDIO_POISON, Linux 6.6).
 *
 * The mark is in the page tables of QEMU, so it outlives the pager, and `meta` says where there is one. Nothing takes
 * it away but a page that is installed in its place. Hence a poisoned page is fetched when a store comes back, although
 * nobody can ask for it; and one that is discarded gets zeros, which are then dropped.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "engine.h"

enum { RUN = 256, HEAL_US = 20000 };

/* Of Linux 6.6; the headers may be older than the kernel. */
enum { FEATURE_POISON = 1 << 14 };

bool poison_possible(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	AUTO_CLOSE int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	AUTO_CLOSE int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC)
					: (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	return fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && api.features & FEATURE_POISON;
}

void poison_pages(struct engine *engine, struct region *region, const uint32_t *pages, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		memory_poison(region, pages[i]);
		table_release(engine, region, pages[i], 1, false, false);
	}
}

void region_loss(struct engine *engine, struct region *region, bool poison)
{
	uint32_t pages[RUN], count;

	pthread_mutex_lock(&engine->lock);
	region->meta->poison = poison;
	region->poison = poison;
	for (uint32_t page = 0; poison && page < region->pages;) {
		for (count = 0; page < region->pages && count < RUN; page++) {
			uint8_t *byte = table_byte(engine, region, page);

			if ((*byte & PAGE_STATE_MASK) != PAGE_LOST || *byte & PAGE_BUSY)
				continue;
			table_step(engine, region, page, EVENT_POISON);
			*byte |= PAGE_BUSY;
			pages[count++] = page;
		}
		pthread_mutex_unlock(&engine->lock);
		poison_pages(engine, region, pages, count);
		pthread_mutex_lock(&engine->lock);
	}
	pthread_mutex_unlock(&engine->lock);
}

/* Fetch poisoned pages of one region; true when all of them were asked for. */
static bool heal_region(struct lane *lane, struct view *view)
{
	struct engine *engine = lane->engine;
	struct region *region = view->region;
	struct operation *operations[RUN];
	uint32_t count = 0;
	bool done;

	pthread_mutex_lock(&engine->lock);
	for (; region->heal < region->pages && count < RUN; region->heal++) {
		if (*table_byte(engine, region, region->heal) != PAGE_POISONED)
			continue;
		if (!region->home && table_kept(engine) + table_reserve(engine) / 2 >= engine->budget)
			break;
		table_step(engine, region, region->heal, EVENT_RETRY);
		operations[count++] = fetch_begin(view, region->heal, 1);
	}
	done = region->heal == region->pages;
	pthread_mutex_unlock(&engine->lock);
	for (uint32_t i = 0; i < count; i++)
		fetch_send(lane, operations[i]);
	return done;
}

void heal(struct lane *lane)
{
	for (unsigned slot = 0; slot < REGIONS_MAX && !lane->number; slot++) {
		struct view *view = lane->views[slot];

		if (!view || !view->region->healing || view->region->closing || view->region->faults < 0)
			continue;
		if (heal_region(lane, view))
			view->region->healing = false;
		else if (now_us() + HEAL_US < lane->next_us)
			lane->next_us = now_us() + HEAL_US;
	}
}
