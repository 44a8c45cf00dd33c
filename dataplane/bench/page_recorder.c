/* Records which pages a program uses: stands in for the pager, keeps almost nothing in the memory, and writes down
 * every fault.
 *
 *   page-recorder SOCKET OUTPUT
 *
 * The program runs as one whose memory is paged: under libvmcoal-qemu.so, with VMCOAL_PAGER=SOCKET. Of each mapping
 * WINDOW pages are present, the last that came in; the use of any other is a fault and becomes a record of 4 bytes: the
 * page's number, and 1 << 31 where a write asked for it. So a use within WINDOW faults of the last one is not recorded,
 * which changes nothing for a cache that is many times larger. Ends when the program unmaps or hangs up.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAGE = 4096, WINDOW = 64, PACKET = 1024 };

static FILE *out;
static int faults = -1, file = -1;
static uint64_t base, length;
static char *map, *shadow; /* the file, of present pages alone; what absent ones hold */
static bool *present;
static uint32_t window[WINDOW];
static unsigned window_next;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void wake(uint32_t page)
{
	struct uffdio_range range = {base + (uint64_t)page * PAGE, PAGE};

	ioctl(faults, UFFDIO_WAKE, &range);
}

static void protect(uint32_t page, bool on)
{
	struct uffdio_writeprotect protection = {
		.range = {base + (uint64_t)page * PAGE, PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(faults, UFFDIO_WRITEPROTECT, &protection) < 0)
		fail("UFFDIO_WRITEPROTECT");
}

static void punch(uint32_t page)
{
	if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page * PAGE, PAGE) < 0)
		fail("fallocate");
}

static void evict(uint32_t page)
{
	if (!present[page])
		return;
	protect(page, true);
	memcpy(shadow + (size_t)page * PAGE, map + (size_t)page * PAGE, PAGE);
	present[page] = false;
	punch(page);
	/* A marker of the protection stays behind; taking it off wakes who waited for it, and it faults anew. */
	protect(page, false);
}

static void fault(const struct uffd_msg *message)
{
	uint32_t page = (uint32_t)((message->arg.pagefault.address - base) / PAGE);
	uint32_t record = page | (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE ? 1U << 31 : 0);
	struct uffdio_copy copy = {
		.dst = base + (uint64_t)page * PAGE, .src = (uintptr_t)shadow + (uint64_t)page * PAGE, .len = PAGE};

	if (present[page] || message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
		wake(page);
		return;
	}
	fwrite(&record, sizeof record, 1, out);
	evict(window[window_next]);
	window[window_next++] = page;
	window_next %= WINDOW;
	present[page] = true;
	if (ioctl(faults, UFFDIO_COPY, &copy) < 0)
		fail("UFFDIO_COPY");
}

static uint64_t field(const char *packet, size_t size, const char *key)
{
	for (const char *at = packet; at < packet + size; at += strlen(at) + 1)
		if (!strncmp(at, key, strlen(key)) && at[strlen(key)] == '=')
			return strtoull(at + strlen(key) + 1, NULL, 10);
	return 0;
}

static void take_map(const char *packet, size_t size, const int fds[2])
{
	struct stat info;

	faults = fds[0];
	file = fds[1];
	base = field(packet, size, "base");
	length = field(packet, size, "length");
	if (!length || fstat(file, &info) < 0 || (uint64_t)info.st_size < length)
		fail("map");
	map = mmap(NULL, length, PROT_READ, MAP_SHARED, file, 0);
	shadow = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	present = calloc(length / PAGE, sizeof *present);
	if (map == MAP_FAILED || shadow == MAP_FAILED || !present)
		fail("mmap");
}

static void discard(uint64_t first, uint64_t count)
{
	for (uint64_t page = first; page < first + count && page < length / PAGE; page++) {
		present[page] = false;
		memset(shadow + page * PAGE, 0, PAGE);
		punch((uint32_t)page);
		wake((uint32_t)page);
	}
}

/* False: the program is done. */
static bool serve(int peer)
{
	char packet[PACKET] = "", answer[] = "ok\0id=record";
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec iov = {packet, sizeof packet - 1};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t size = recvmsg(peer, &message, MSG_CMSG_CLOEXEC);
	bool more = true;

	if (size <= 0)
		return false;
	if (!strcmp(packet, "map")) {
		struct cmsghdr *header = CMSG_FIRSTHDR(&message);

		if (!header || header->cmsg_len != CMSG_LEN(2 * sizeof(int)) || map)
			return false;
		take_map(packet, (size_t)size, (int *)(void *)CMSG_DATA(header));
	} else if (!strcmp(packet, "discard")) {
		discard(field(packet, (size_t)size, "offset") / PAGE, field(packet, (size_t)size, "length") / PAGE);
	} else {
		more = false;
	}
	/* `ok` alone, but to `map`. */
	send(peer, answer, strcmp(packet, "map") ? 3 : sizeof answer, MSG_NOSIGNAL);
	return more;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), peer;

	if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path)
		return 2;
	strcpy(address.sun_path, argv[1]);
	out = fopen(argv[2], "wb");
	if (!out || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
		fail(argv[1]);
	puts("ready");
	fflush(stdout);
	peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	for (;;) {
		struct pollfd polled[2] = {{peer, POLLIN, 0}, {faults, POLLIN, 0}};
		struct uffd_msg message;

		if (poll(polled, faults < 0 ? 1 : 2, -1) < 0 && errno != EINTR)
			fail("poll");
		while (faults >= 0 && read(faults, &message, sizeof message) == sizeof message)
			if (message.event == UFFD_EVENT_PAGEFAULT)
				fault(&message);
		if (polled[0].revents && !serve(peer))
			break;
	}
	/* What still waits gets its pages as it goes. */
	return fclose(out) ? 1 : 0;
}
