/* libfar-heap.so, preloaded: puts a program's heap into a file, which may be the pager's memory, so that programs that
 * know nothing of it can be measured and recorded there.
 *
 * FAR_HEAP names the file; its size bounds the heap. malloc and its kin and private anonymous mappings come from there;
 * stacks, globals and what the C library maps for itself do not. Loaded before libvmcoal-qemu.so, it maps the file through
 * that. The allocator is as simple as can be: free lists by size class, and mappings by first fit. A program that forks
 * would share its heap with the child, so such a program must not be run with it.
 */
#undef _FILE_OFFSET_BITS

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { PAGE = 4096, SMALL = 1024, GRAIN = 16, CLASSES = 160, BOOT = 1 << 20, HOLES = 4096 };

/* Before each block. */
struct header {
	uint32_t class; /* CLASSES: of the first moments */
	uint32_t back;	/* from the block to where its allocation begins */
	size_t size;
};

struct hole {
	size_t at, length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum { NEW, BEGINNING, READY } state;
static char *heap;
static size_t heap_size, low, high; /* blocks grow up from 0, mappings down from the end */
static void *lists[CLASSES];
static struct hole holes[HOLES];
static unsigned hole_count;
static char boot[BOOT] __attribute__((aligned(PAGE)));
static size_t boot_used;

static void *real_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	static __typeof__(&mmap) real;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "mmap");
	return real(address, length, protection, flags, fd, offset);
}

static void fail(const char *what)
{
	dprintf(2, "libfar-heap: %s: %s\n", what, strerror(errno));
	_exit(70);
}

/* Under the lock. What is asked for meanwhile comes from `boot`. */
static void begin(void)
{
	const char *path = getenv("FAR_HEAP");
	struct stat info;
	int fd;

	if (state != NEW)
		return;
	state = BEGINNING;
	fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0 || fstat(fd, &info) < 0)
		fail(path ? path : "FAR_HEAP");
	heap_size = (size_t)info.st_size;
	pthread_mutex_unlock(&lock);
	heap = real_mmap(NULL, heap_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pthread_mutex_lock(&lock);
	if (heap == MAP_FAILED)
		fail(path);
	high = heap_size;
	state = READY;
}

/* Sizes up to SMALL in steps of a grain, then four steps for each power of two. */
static uint32_t class_of(size_t size, size_t *rounded)
{
	uint32_t class = SMALL / GRAIN, power = 10;

	if (size <= SMALL) {
		*rounded = size ? (size + GRAIN - 1) / GRAIN * GRAIN : GRAIN;
		return (uint32_t)(*rounded / GRAIN - 1);
	}
	for (; size > (2UL << power); power++)
		class += 4;
	*rounded = ((size - 1) / (1UL << (power - 2)) + 1) << (power - 2);
	return class + (uint32_t)((*rounded - (1UL << power)) >> (power - 2)) - 1;
}

static void *allocate(size_t size, size_t align, bool *fresh)
{
	struct header *header;
	size_t rounded, place;
	uint32_t class;
	char *block;

	*fresh = false;
	if (size > (1UL << 40))
		return NULL;
	class = class_of(size + (align > GRAIN ? align : 0), &rounded);
	pthread_mutex_lock(&lock);
	begin();
	if (state != READY) {
		place = boot_used + sizeof *header;
		boot_used += sizeof *header + rounded;
		if (boot_used > BOOT)
			fail("too early");
		block = boot + place;
		class = CLASSES;
	} else if (lists[class]) {
		block = lists[class];
		memcpy(&lists[class], block, sizeof(void *));
	} else {
		if (low + sizeof *header + rounded > high) {
			pthread_mutex_unlock(&lock);
			errno = ENOMEM;
			return NULL;
		}
		block = heap + low + sizeof *header;
		low += sizeof *header + rounded;
		*fresh = true;
	}
	pthread_mutex_unlock(&lock);
	place = align > GRAIN ? (align - (uintptr_t)block % align) % align : 0;
	header = (struct header *)(void *)(block + place) - 1;
	*header = (struct header){class, (uint32_t)place, rounded - place};
	return block + place;
}

static struct header *header_of(void *block)
{
	return (struct header *)block - 1;
}

EXPORT void *malloc(size_t size)
{
	bool fresh;

	return allocate(size, GRAIN, &fresh);
}

EXPORT void free(void *block)
{
	struct header header;
	char *begins;

	if (!block)
		return;
	header = *header_of(block);
	if (header.class >= CLASSES)
		return;
	begins = (char *)block - header.back;
	pthread_mutex_lock(&lock);
	memcpy(begins, &lists[header.class], sizeof(void *));
	lists[header.class] = begins;
	pthread_mutex_unlock(&lock);
}

EXPORT void *calloc(size_t count, size_t size)
{
	bool fresh;
	void *block;

	if (size && count > SIZE_MAX / size) {
		errno = ENOMEM;
		return NULL;
	}
	block = allocate(count * size, GRAIN, &fresh);
	if (block && !fresh)
		memset(block, 0, count * size);
	return block;
}

EXPORT void *realloc(void *block, size_t size)
{
	void *other;

	if (block && header_of(block)->size >= size && header_of(block)->size / 4 <= size)
		return block;
	other = malloc(size);
	if (block && other) {
		memcpy(other, block, header_of(block)->size < size ? header_of(block)->size : size);
		free(block);
	}
	return other;
}

EXPORT void *memalign(size_t align, size_t size)
{
	bool fresh;

	return allocate(size, align, &fresh);
}

EXPORT void *aligned_alloc(size_t align, size_t size)
{
	return memalign(align, size);
}

EXPORT int posix_memalign(void **block, size_t align, size_t size)
{
	*block = memalign(align, size);
	return *block ? 0 : ENOMEM;
}

EXPORT void *valloc(size_t size)
{
	return memalign(PAGE, size);
}

EXPORT size_t malloc_usable_size(void *block)
{
	return block ? header_of(block)->size : 0;
}

static void *map_here(size_t length)
{
	char *found = MAP_FAILED;

	length = (length + PAGE - 1) / PAGE * PAGE;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < hole_count && found == MAP_FAILED; i++) {
		if (holes[i].length < length)
			continue;
		holes[i].length -= length;
		found = heap + holes[i].at + holes[i].length;
		if (!holes[i].length)
			holes[i] = holes[--hole_count];
	}
	if (found == MAP_FAILED && high - low >= length) {
		high = (high - length) / PAGE * PAGE;
		found = heap + high;
	}
	pthread_mutex_unlock(&lock);
	errno = ENOMEM;
	return found;
}

#define MMAP(name)                                                                                                     \
	EXPORT void *name(void *address, size_t length, int protection, int flags, int fd, off_t offset)               \
	{                                                                                                              \
		if (state != READY || address || !(flags & MAP_ANONYMOUS) || !(flags & MAP_PRIVATE) ||                 \
		    !(protection & PROT_WRITE) || flags & (MAP_STACK | MAP_NORESERVE))                                 \
			return real_mmap(address, length, protection, flags, fd, offset);                              \
		return map_here(length);                                                                               \
	}

MMAP(mmap)
MMAP(mmap64)

EXPORT int munmap(void *address, size_t length)
{
	static __typeof__(&munmap) real;
	char *at = address;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "munmap");
	if (state != READY || at < heap || at >= heap + heap_size)
		return real(address, length);
	length = (length + PAGE - 1) / PAGE * PAGE;
	/* The next owner expects zeros. */
	if (madvise(at, length, MADV_REMOVE))
		return -1;
	pthread_mutex_lock(&lock);
	if (hole_count < HOLES)
		holes[hole_count++] = (struct hole){(size_t)(at - heap), length};
	pthread_mutex_unlock(&lock);
	return 0;
}

EXPORT void *mremap(void *address, size_t before, size_t after, int flags, ...)
{
	static __typeof__(&mremap) real;
	char *at = address;
	void *wanted = NULL, *other;
	va_list rest;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "mremap");
	if (flags & MREMAP_FIXED) {
		va_start(rest, flags);
		wanted = va_arg(rest, void *);
		va_end(rest);
	}
	if (state != READY || at < heap || at >= heap + heap_size)
		return real(address, before, after, flags, wanted);
	if (!(flags & MREMAP_MAYMOVE) || wanted || (other = map_here(after)) == MAP_FAILED) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	memcpy(other, address, before < after ? before : after);
	munmap(address, before);
	return other;
}
