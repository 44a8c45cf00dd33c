/* What plain libnbd does with a server: the floor that the pager is measured against.
 *
 *   nbd-floor ADDRESS PORT EXPORT IDENTITY PSK-FILE faults COUNT   COUNT random 4 KiB reads, one at a time
 *   nbd-floor ADDRESS PORT EXPORT IDENTITY PSK-FILE read MIB       MIB in order, 64 MiB of them in flight
 *   nbd-floor ADDRESS PORT EXPORT IDENTITY PSK-FILE write MIB
 *   nbd-floor ping COUNT    no NBD at all: COUNT times 32 bytes to another process over TCP and 4 KiB back
 *   nbd-floor seal COUNT    COUNT pages sealed, opened, and copied
 *
 * An IDENTITY of - is no TLS. Prints pairs of a name and a number: p50 and p99 in microseconds, MB/s, microseconds (of the
 * processor where it says cpu) for a page. A tenth of what is asked for is done before, unmeasured. There are as many connections as a lane of the pager has.
 */
#include <arpa/inet.h>
#include <libnbd.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "seal.h"

enum { CONNECTIONS = 3, BLOCK = 256 << 10, IN_FLIGHT = 64 << 20, ASK = 32, FLOOR_PAGE = 4096 };

static struct nbd_handle *handles[CONNECTIONS];
static char *buffer;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void check(int failed)
{
	if (!failed)
		return;
	fprintf(stderr, "nbd-floor: %s\n", nbd_get_error());
	exit(1);
}

static int by_time(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

static void print_times(double *took, size_t count)
{
	qsort(took, count, sizeof *took, by_time);
	printf("p50 %.2f p99 %.2f\n", took[count / 2], took[count * 99 / 100]);
}

static double stream(uint64_t from, uint64_t size, int write)
{
	uint64_t next = from, end = from + size;
	double begun = now();
	int left;

	do {
		struct pollfd ready[CONNECTIONS];

		left = 0;
		for (int i = 0; i < CONNECTIONS; i++) {
			unsigned direction;

			while (next < end && nbd_aio_in_flight(handles[i]) < IN_FLIGHT / BLOCK / CONNECTIONS) {
				check((write ? nbd_aio_pwrite(handles[i], buffer + next % IN_FLIGHT, BLOCK, next,
							      NBD_NULL_COMPLETION, 0)
					     : nbd_aio_pread(handles[i], buffer + next % IN_FLIGHT, BLOCK, next,
							     NBD_NULL_COMPLETION, 0)) < 0);
				next += BLOCK;
			}
			direction = nbd_aio_get_direction(handles[i]);
			ready[i].fd = nbd_aio_get_fd(handles[i]);
			ready[i].events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
					  (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
		}
		poll(ready, CONNECTIONS, 1000);
		for (int i = 0; i < CONNECTIONS; i++) {
			int64_t cookie;

			if (ready[i].revents & POLLIN)
				check(nbd_aio_notify_read(handles[i]) < 0);
			else if (ready[i].revents & POLLOUT)
				check(nbd_aio_notify_write(handles[i]) < 0);
			while ((cookie = nbd_aio_peek_command_completed(handles[i])) > 0)
				check(nbd_aio_command_completed(handles[i], (uint64_t)cookie) < 0);
			left += nbd_aio_in_flight(handles[i]);
		}
	} while (next < end || left);
	return (double)size / 1e6 / (now() - begun);
}

static void faults(size_t count)
{
	uint64_t random = 42, pages = (uint64_t)nbd_get_size(handles[0]) / FLOOR_PAGE;
	double *took = calloc(count, sizeof *took), begun;

	for (size_t i = 0; i < count + count / 10; i++) {
		random = random * 6364136223846793005ULL + 1442695040888963407ULL;
		begun = now();
		check(nbd_pread(handles[0], buffer, FLOOR_PAGE, (random >> 33) % pages * FLOOR_PAGE, 0) < 0);
		took[i % count] = (now() - begun) * 1e6;
	}
	print_times(took, count);
	free(took);
}

static void receive_all(int fd, size_t bytes)
{
	for (ssize_t part; bytes; bytes -= (size_t)part)
		if ((part = recv(fd, buffer, bytes, 0)) <= 0)
			exit(1);
}

static void ping(size_t count)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	double *took = calloc(count, sizeof *took), begun;
	socklen_t length = sizeof address;

	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &length) < 0)
		exit(1);
	if (!fork()) {
		/* The other end has to be the only one, or this would never end. */
		close(fd);
		fd = accept(listener, NULL, NULL);
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		for (;;) {
			receive_all(fd, ASK);
			if (send(fd, buffer, FLOOR_PAGE, MSG_NOSIGNAL) != FLOOR_PAGE)
				_exit(0);
		}
	}
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		exit(1);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (size_t i = 0; i < count + count / 10; i++) {
		begun = now();
		if (send(fd, buffer, ASK, 0) != ASK)
			exit(1);
		receive_all(fd, FLOOR_PAGE);
		took[i % count] = (now() - begun) * 1e6;
	}
	print_times(took, count);
	free(took);
}

static void seals(size_t count)
{
	static const uint8_t key[SEAL_KEY_SIZE] = {1};
	struct seal_record record;
	double times[4];
	struct seal seal;

	if (!seal_open(&seal, key))
		exit(1);
	for (size_t i = 0; i < count / 10; i++)
		seal_page(&seal, i, i + 1, buffer, FLOOR_PAGE, buffer + (1 << 20), &record);
	times[0] = now();
	for (size_t i = 0; i < count; i++)
		seal_page(&seal, i, i + 1, buffer + i % 128 * FLOOR_PAGE, FLOOR_PAGE, buffer + (1 << 20), &record);
	times[1] = now();
	/* What is opened is not what was sealed after the first time: as much work, another answer. */
	for (size_t i = 0; i < count; i++)
		seal_unseal(&seal, i, &record, buffer + (1 << 20));
	times[2] = now();
	for (size_t i = 0; i < count; i++)
		memcpy(buffer + (1 << 20) + i % 2 * FLOOR_PAGE, buffer + i % 128 * FLOOR_PAGE, FLOOR_PAGE);
	times[3] = now();
	printf("seal %.3f unseal %.3f copy %.3f\n", (times[1] - times[0]) * 1e6 / (double)count,
	       (times[2] - times[1]) * 1e6 / (double)count, (times[3] - times[2]) * 1e6 / (double)count);
	seal_close(&seal);
}

static void open_all(char **argv)
{
	for (int i = 0; i < CONNECTIONS; i++) {
		handles[i] = nbd_create();
		check(!handles[i] || nbd_set_export_name(handles[i], argv[3]) < 0 ||
		      nbd_set_pread_initialize(handles[i], false) < 0);
		if (strcmp(argv[4], "-"))
			check(nbd_set_tls(handles[i], LIBNBD_TLS_REQUIRE) < 0 ||
			      nbd_set_tls_username(handles[i], argv[4]) < 0 ||
			      nbd_set_tls_psk_file(handles[i], argv[5]) < 0);
		check(nbd_connect_tcp(handles[i], argv[1], argv[2]) < 0);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc == 8 ? argv[6] : argc == 3 ? argv[1] : "";
	uint64_t number = argc == 8 || argc == 3 ? strtoull(argv[argc - 1], NULL, 10) : 0;
	double spent, rate;

	if (!number)
		return 2;
	buffer = malloc(IN_FLIGHT);
	memset(buffer, 7, IN_FLIGHT);
	if (!strcmp(what, "ping")) {
		ping(number);
	} else if (!strcmp(what, "seal")) {
		seals(number);
	} else {
		open_all(argv);
		if (!strcmp(what, "faults")) {
			faults(number);
		} else {
			stream(0, (number / 10 + 1) << 20, *what == 'w');
			spent = cpu_seconds();
			rate = stream(0, number << 20, *what == 'w');
			printf("MB/s %.1f cpu %.3f\n", rate,
			       (cpu_seconds() - spent) * 1e6 * FLOOR_PAGE / (double)(number << 20));
		}
	}
	return 0;
}
