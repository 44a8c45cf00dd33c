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

/* One request of the kernel for a range; returns how many bytes were done, or a negative errno. */
static int64_t copy_range(const struct region *region, uint64_t to, const char *bytes, uint64_t length, bool protect)
{
	struct uffdio_copy copy = {.dst = to,
				   .src = (uint64_t)(uintptr_t)bytes,
				   .len = length,
				   .mode = protect ? UFFDIO_COPY_MODE_WP : 0};

	if (!ioctl(region->faults, UFFDIO_COPY, &copy))
		return (int64_t)length;
	return copy.copy ? copy.copy : -errno;
}

/* Without a copy, but it cannot protect. */
static int64_t zero_range(const struct region *region, uint64_t to, uint64_t length)
{
	struct uffdio_zeropage zero = {.range = {to, length}};

	if (!ioctl(region->faults, UFFDIO_ZEROPAGE, &zero))
		return (int64_t)length;
	return zero.zeropage ? zero.zeropage : -errno;
}

uint32_t memory_install(const struct region *region, uint32_t page, uint32_t count, const char *bytes, bool protect)
{
	static const char zeros[RUN_MAX * PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
	uint64_t to = address(region, page), end = address(region, page + count);

	while (to < end) {
		int64_t done = -ENOENT;

		if (region->faults >= 0)
			done = bytes || protect
				       ? copy_range(region, to, bytes ? bytes : zeros, end - to, protect)
				       : zero_range(region, to, end - to);
		if (done == -EEXIST) {
			memory_wake(region, (uint32_t)((to - region->base) / PAGE_SIZE), 1);
			done = PAGE_SIZE;
		}
		if (done < 0 && done != -EAGAIN)
			break;
		if (done > 0) {
			bytes += bytes ? done : 0;
			to += (uint64_t)done;
		}
	}
	return (uint32_t)((to - address(region, page)) / PAGE_SIZE);
}

static void protect_range(int faults, uint64_t start, uint64_t length, bool protect)
{
	struct uffdio_writeprotect change = {
		.range = {start, length},
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (faults >= 0 && ioctl(faults, UFFDIO_WRITEPROTECT, &change) < 0 && errno == EAGAIN)
		;
}

void memory_protect(const struct region *region, uint32_t page, uint32_t count, bool protect)
{
	protect_range(region->faults, address(region, page), (uint64_t)count * PAGE_SIZE, protect);
}

void memory_unprotect_all(const struct region *region, int faults)
{
	protect_range(faults, address(region, 0), (uint64_t)region->pages * PAGE_SIZE, false);
}

/* Of Linux 6.6; the headers may be older than the kernel. */
struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define POISON _IOWR(UFFDIO, 0x08, struct poison)

void memory_poison(const struct region *region, uint32_t page)
{
	struct poison poison = {.range = {address(region, page), PAGE_SIZE}};

	/* What it finds there (EEXIST) is the mark itself: the page is not there, and no protection is left of it. */
	while (region->faults >= 0 && ioctl(region->faults, POISON, &poison) < 0 && errno == EAGAIN)
		;
	memory_wake(region, page, 1);
}

void memory_cleanse(const struct region *region, uint32_t page)
{
	static const char zeros[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

	memory_install(region, page, 1, zeros, false);
	memory_drop(region, page, 1);
}

void memory_drop(const struct region *region, uint32_t page, uint32_t count)
{
	if (fallocate(region->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * PAGE_SIZE,
		      (off_t)count * PAGE_SIZE) < 0)
		fprintf(stderr, "vmcoal-pager: %s: cannot drop pages: %s\n", region->id, strerror(errno));
	/* The marks of the protection outlive the pages, and would protect their successors. */
	memory_protect(region, page, count, false);
}

bool memory_read(const struct region *region, uint32_t page, uint32_t count, char *bytes)
{
	size_t left = (size_t)count * PAGE_SIZE;
	off_t at = (off_t)page * PAGE_SIZE;

	for (ssize_t part; left; left -= (size_t)part, at += part, bytes += part)
		if ((part = pread(region->file, bytes, left, at)) <= 0)
			return false;
	return true;
}
