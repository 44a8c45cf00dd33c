/* What plain libnbd does with a server: the floor that the pager is measured against.
 *
 *   nbd-floor ADDRESS PORT EXPORT IDENTITY PSK-FILE COUNT MIB
 *
 * Prints "p50 P p99 Q" of COUNT random 4 KiB reads, one at a time, in microseconds, then "read R write W", MB/s of
 * reading and writing MIB in order with 64 MiB in flight on as many connections as a lane of the pager has.
 */
#include <libnbd.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CONNECTIONS = 3, BLOCK = 256 << 10, IN_FLIGHT = 64 << 20 };

static struct nbd_handle *handles[CONNECTIONS];
static char *buffer;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
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

static double stream(uint64_t size, int write)
{
	uint64_t next = 0;
	double begun = now();
	int left;

	do {
		struct pollfd ready[CONNECTIONS];

		left = 0;
		for (int i = 0; i < CONNECTIONS; i++) {
			while (next < size && nbd_aio_in_flight(handles[i]) < IN_FLIGHT / BLOCK / CONNECTIONS) {
				check((write ? nbd_aio_pwrite(handles[i], buffer + next % IN_FLIGHT, BLOCK, next,
							      NBD_NULL_COMPLETION, 0)
					     : nbd_aio_pread(handles[i], buffer + next % IN_FLIGHT, BLOCK, next,
							     NBD_NULL_COMPLETION, 0)) < 0);
				next += BLOCK;
			}
			ready[i].fd = nbd_aio_get_fd(handles[i]);
			ready[i].events = (nbd_aio_get_direction(handles[i]) & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
					  (nbd_aio_get_direction(handles[i]) & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
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
	} while (next < size || left);
	return (double)size / 1e6 / (now() - begun);
}

int main(int argc, char **argv)
{
	size_t count = argc == 8 ? strtoul(argv[6], NULL, 10) : 0;
	uint64_t size = argc == 8 ? strtoull(argv[7], NULL, 10) << 20 : 0, random = 42;
	double *took, rate;

	if (!count || !size)
		return 2;
	for (int i = 0; i < CONNECTIONS; i++) {
		handles[i] = nbd_create();
		check(!handles[i] || nbd_set_export_name(handles[i], argv[3]) < 0 ||
		      nbd_set_tls(handles[i], LIBNBD_TLS_REQUIRE) < 0 || nbd_set_tls_username(handles[i], argv[4]) < 0 ||
		      nbd_set_tls_psk_file(handles[i], argv[5]) < 0 ||
		      nbd_set_pread_initialize(handles[i], false) < 0 ||
		      nbd_connect_tcp(handles[i], argv[1], argv[2]) < 0);
	}
	buffer = malloc(IN_FLIGHT);
	memset(buffer, 7, IN_FLIGHT);
	took = calloc(count, sizeof *took);
	for (size_t i = 0; i < count; i++) {
		double begun = now();

		random = random * 6364136223846793005ULL + 1442695040888963407ULL;
		check(nbd_pread(handles[0], buffer, 4096, (random >> 33) % (size / 4096) * 4096, 0) < 0);
		took[i] = (now() - begun) * 1e6;
	}
	qsort(took, count, sizeof *took, by_time);
	printf("p50 %.1f p99 %.1f\n", took[count / 2], took[count * 99 / 100]);
	rate = stream(size, 0);
	printf("read %.1f write %.1f\n", rate, stream(size, 1));
	return 0;
}
