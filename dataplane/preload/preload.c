/* libvmcoal-qemu.so, preloaded into QEMU: hands the faults of borrowed memory to the pager.
 *
 * VMCOAL_PAGER is the pager's socket, VMCOAL_PAGER_FILES the folder whose files are borrowed memory. When QEMU maps
 * one of them shared, the mapping is registered with userfaultfd before anybody can touch it, and the descriptor goes to
 * the pager. It stays open here too: were the pager's the last one, its death would turn missing pages into zeros.
 *
 * Discards (virtio-mem, balloon) cause no fault, so they are asked of the pager, which does them itself in the order
 * that its page table needs. Without VMCOAL_PAGER nothing here does anything.
 */
#undef _FILE_OFFSET_BITS /* it would rename the functions that are defined here */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "cleanup.h"
#include "packet.h"

enum { MAPPINGS_MAX = 64, ID_MAX = 32, PACKET = 512, DEADLINE_MS = 10000, RETRY_MS = 20 };

static struct mapping {
	char *base; /* NULL: free */
	size_t length;
	dev_t device;
	ino_t inode;
	int faults;
	char id[ID_MAX + 1];
} mappings[MAPPINGS_MAX];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int pager = -1;

/* The functions that are stood in for. Looked up by the first call of each, which may come before constructors ran. */
#define REAL(name)                                                                                                     \
	({                                                                                                             \
		static __typeof__(&name) real_;                                                                        \
		if (!real_)                                                                                            \
			*(void **)&real_ = dlsym(RTLD_NEXT, #name);                                                    \
		real_;                                                                                                 \
	})

static int pager_connect(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	return fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -1 : take_fd(&fd);
}

/* Ask the pager. One that died is replaced by the holder within a moment, and asked again: every order may be repeated.
 * Returns the length of what it said, or 0. */
static size_t ask(const char *packet, size_t length, const int fds[2], char answer[PACKET])
{
	const char *path = getenv("VMCOAL_PAGER");

	for (int left = DEADLINE_MS; left > 0; left -= RETRY_MS) {
		struct pollfd ready;
		ssize_t received;

		if (pager < 0)
			pager = pager_connect(path);
		if (pager >= 0 && packet_write(pager, packet, length, fds, fds ? 2 : 0, 0)) {
			ready = (struct pollfd){pager, POLLIN, 0};
			if (poll(&ready, 1, left) == 1) {
				received = recv(pager, answer, PACKET, 0);
				if (received > 0)
					return (size_t)received;
			}
		}
		if (pager >= 0)
			close(take_fd(&pager));
		poll(NULL, 0, RETRY_MS);
	}
	return 0;
}

/* As ask(), of an order without descriptors that is either obeyed or not. */
static bool order(const char *format, ...) __attribute__((format(printf, 1, 2)));

static bool order(const char *format, ...)
{
	char packet[PACKET], answer[PACKET];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(packet, sizeof packet, format, args);
	va_end(args);
	for (int i = 0; i < length; i++)
		if (packet[i] == '\n')
			packet[i] = 0;
	return answer_ok(answer, ask(packet, (size_t)length, NULL, answer));
}

static bool borrowed(int fd)
{
	const char *folder = getenv("VMCOAL_PAGER_FILES");
	char link[64], path[4096];
	ssize_t length;

	if (!folder || !getenv("VMCOAL_PAGER"))
		return false;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (length <= 0)
		return false;
	path[length] = 0;
	return !strncmp(path, folder, strlen(folder)) && path[strlen(folder)] == '/';
}

static int userfaultfd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	AUTO_CLOSE int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	AUTO_CLOSE int fd = -1;

	/* Faults of KVM and of system calls happen in the kernel: never UFFD_USER_MODE_ONLY. */
	fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
			 : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 ? -1 : take_fd(&fd);
}

/* Hand a new mapping over. Under the lock. */
static bool hand_over(struct mapping *mapping, int file)
{
	struct uffdio_register range = {
		.range = {(uintptr_t)mapping->base, mapping->length},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	AUTO_CLOSE int faults = userfaultfd();
	char packet[PACKET], answer[PACKET];
	const char *id;
	size_t said;
	int length;

	if (faults < 0) {
		perror("libvmcoal-qemu: userfaultfd");
		return false;
	}
	madvise(mapping->base, mapping->length, MADV_NOHUGEPAGE);
	madvise(mapping->base, mapping->length, MADV_DONTDUMP);
	if (ioctl(faults, UFFDIO_REGISTER, &range) < 0) {
		perror("libvmcoal-qemu: UFFDIO_REGISTER");
		return false;
	}
	length = snprintf(packet, sizeof packet, "map%cbase=%llu%clength=%zu%c", 0,
			  (unsigned long long)(uintptr_t)mapping->base, 0, mapping->length, 0);
	said = ask(packet, (size_t)length, (int[]){faults, file}, answer);
	id = answer_ok(answer, said) ? answer_value(answer, said, "id") : NULL;
	if (!id) {
		fprintf(stderr, "libvmcoal-qemu: the pager does not take this memory\n");
		return false;
	}
	snprintf(mapping->id, sizeof mapping->id, "%.*s", ID_MAX, id);
	mapping->faults = take_fd(&faults);
	return true;
}

static void *mapped(void *base, size_t length, int file)
{
	struct mapping *mapping = NULL;
	struct stat info;
	bool ok = false;

	pthread_mutex_lock(&lock);
	for (int i = 0; i < MAPPINGS_MAX && !mapping; i++)
		if (!mappings[i].base)
			mapping = &mappings[i];
	if (mapping && !fstat(file, &info)) {
		*mapping = (struct mapping){base, length, info.st_dev, info.st_ino, -1, ""};
		ok = hand_over(mapping, file);
		if (!ok)
			mapping->base = NULL;
	}
	pthread_mutex_unlock(&lock);
	if (ok)
		return base;
	REAL(munmap)(base, length);
	errno = EIO;
	return MAP_FAILED;
}

#define MMAP(name)                                                                                                     \
	__attribute__((visibility("default"))) void *name(void *address, size_t length, int protection, int flags,     \
							  int fd, off_t offset)                                        \
	{                                                                                                              \
		void *base = REAL(name)(address, length, protection, flags, fd, offset);                               \
                                                                                                                       \
		if (base == MAP_FAILED || fd < 0 || !(flags & MAP_SHARED) || !(protection & PROT_WRITE) || offset ||   \
		    !borrowed(fd))                                                                                     \
			return base;                                                                                   \
		return mapped(base, length, fd);                                                                       \
	}

MMAP(mmap)
MMAP(mmap64)

__attribute__((visibility("default"))) int munmap(void *address, size_t length)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < MAPPINGS_MAX; i++) {
		struct mapping *mapping = &mappings[i];

		if (!mapping->base || mapping->base < (char *)address ||
		    mapping->base + mapping->length > (char *)address + length)
			continue;
		order("unmap\nid=%s\n", mapping->id);
		close(mapping->faults);
		mapping->base = NULL;
	}
	pthread_mutex_unlock(&lock);
	return REAL(munmap)(address, length);
}

/* Discard a part of a mapping; false with errno. Under the lock. */
static bool discard(const struct mapping *mapping, uint64_t offset, uint64_t length)
{
	if (order("discard\nid=%s\noffset=%llu\nlength=%llu\n", mapping->id, (unsigned long long)offset,
		  (unsigned long long)length))
		return true;
	errno = EIO;
	return false;
}

__attribute__((visibility("default"))) int madvise(void *address, size_t length, int advice)
{
	int result = 1;

	if (advice == MADV_DONTNEED || advice == MADV_REMOVE) {
		pthread_mutex_lock(&lock);
		for (int i = 0; i < MAPPINGS_MAX && result > 0; i++) {
			const struct mapping *mapping = &mappings[i];
			char *start = address;

			if (mapping->base && start >= mapping->base && start + length <= mapping->base + mapping->length)
				result = discard(mapping, (uint64_t)(start - mapping->base), length) ? 0 : -1;
		}
		pthread_mutex_unlock(&lock);
	}
	return result <= 0 ? result : REAL(madvise)(address, length, advice);
}

/* 1: not a borrowed file. */
static int punch(int fd, int mode, off_t offset, off_t length)
{
	struct stat info;
	int result = 1;

	if (!(mode & FALLOC_FL_PUNCH_HOLE) || fstat(fd, &info) < 0)
		return 1;
	pthread_mutex_lock(&lock);
	for (int i = 0; i < MAPPINGS_MAX && result > 0; i++) {
		const struct mapping *mapping = &mappings[i];

		if (mapping->base && mapping->device == info.st_dev && mapping->inode == info.st_ino)
			result = discard(mapping, (uint64_t)offset, (uint64_t)length) ? 0 : -1;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

#define FALLOCATE(name)                                                                                                \
	__attribute__((visibility("default"))) int name(int fd, int mode, off_t offset, off_t length)                  \
	{                                                                                                              \
		int result = punch(fd, mode, offset, length);                                                          \
                                                                                                                       \
		return result <= 0 ? result : REAL(name)(fd, mode, offset, length);                                    \
	}

FALLOCATE(fallocate)
FALLOCATE(fallocate64)
