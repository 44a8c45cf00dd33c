#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine.h"

static uint64_t address(const struct region *region, uint32_t page)
{
	return region->base + (uint64_t)page * PAGE_SIZE;
}

void memory_wake(const struct region *region, uint32_t page, uint32_t count)
{
	struct uffdio_range range = {address(region, page), (uint64_t)count * PAGE_SIZE};

	if (region->faults >= 0)
		ioctl(region->faults, UFFDIO_WAKE, &range);
}

/* False: QEMU is gone, or there is no memory for it. A page that is there already stays, and its threads are woken. */
bool memory_install(const struct region *region, uint32_t page, uint32_t count, const char *bytes, bool protect)
{
	struct uffdio_copy copy = {.dst = address(region, page),
				   .src = (uint64_t)(uintptr_t)bytes,
				   .len = (uint64_t)count * PAGE_SIZE,
				   .mode = protect ? UFFDIO_COPY_MODE_WP : 0};
	uint64_t step;

	while (copy.len) {
		copy.copy = 0;
		if (region->faults < 0)
			return false;
		if (!ioctl(region->faults, UFFDIO_COPY, &copy))
			return true;
		if (copy.copy > 0)
			step = (uint64_t)copy.copy;
		else if (copy.copy == -EEXIST)
			step = PAGE_SIZE;
		else if (errno == EAGAIN || copy.copy == -EAGAIN)
			continue;
		else
			return false;
		if (copy.copy < 0)
			memory_wake(region, (uint32_t)((copy.dst - region->base) / PAGE_SIZE), 1);
		copy.dst += step;
		copy.src += step;
		copy.len -= step;
	}
	return true;
}

void memory_protect(const struct region *region, uint32_t page, uint32_t count, bool protect)
{
	struct uffdio_writeprotect change = {
		.range = {address(region, page), (uint64_t)count * PAGE_SIZE},
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (region->faults >= 0 && ioctl(region->faults, UFFDIO_WRITEPROTECT, &change) < 0 && errno == EAGAIN)
		;
}

void memory_drop(const struct region *region, uint32_t page, uint32_t count)
{
	if (fallocate(region->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * PAGE_SIZE,
		      (off_t)count * PAGE_SIZE) < 0)
		fprintf(stderr, "vmcoal-pager: %s: cannot drop pages: %s\n", region->id, strerror(errno));
	/* The marks of the protection outlive the pages, and would protect their successors. */
	memory_protect(region, page, count, false);
}
