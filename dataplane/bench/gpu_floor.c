/* What a link alone takes, for tools/bench-gpu: answers and streams of bytes over plain TCP, or the way that calls take.
 *
 *   gpu-floor serve [PATH]  prints the TCP port of every address that it listens on; serves until its input ends, those who
 *                           connect to the Unix socket PATH too
 *   gpu-floor PORT|PATH     reads lines: `ping COUNT`, `h2d BYTES`, `d2h BYTES`; prints the seconds of each
 *
 * A request is one letter and eight bytes of a number, little endian. p: one byte comes back; h: so many bytes follow,
 * and one byte comes back; d: so many bytes come back.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 256 << 10, REQUEST = 9, LINE = 128 };

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static int get(int fd, void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = read(fd, (char *)data + done, size - done);

		if (count <= 0)
			return -1;
		done += (size_t)count;
	}
	return 0;
}

static int put(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t count = write(fd, (const char *)data + done, size - done);

		if (count <= 0)
			return -1;
		done += (size_t)count;
	}
	return 0;
}

/* Move `size` bytes one way, whatever is in them. */
static int move(int (*way)(int, void *, size_t), int fd, uint64_t size)
{
	static _Thread_local char piece[PIECE];
	int failed = 0;

	for (uint64_t done = 0; done < size && !failed; done += PIECE)
		failed = way(fd, piece, size - done < PIECE ? (size_t)(size - done) : PIECE);
	return failed;
}

static int put_any(int fd, void *data, size_t size)
{
	return put(fd, data, size);
}

static void *answer(void *argument)
{
	int fd = (int)(intptr_t)argument;
	unsigned char request[REQUEST];
	uint64_t size;

	while (!get(fd, request, sizeof request)) {
		memcpy(&size, request + 1, sizeof size);
		if (request[0] == 'h' && move(get, fd, size))
			break;
		if (request[0] == 'd' ? move(put_any, fd, size) : put(fd, request, 1))
			break;
	}
	close(fd);
	return NULL;
}

static void undelayed(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void *accept_all(void *argument)
{
	for (;;) {
		int fd = accept(*(int *)argument, NULL, NULL);
		pthread_t thread;

		if (fd < 0)
			continue;
		undelayed(fd);
		if (!pthread_create(&thread, NULL, answer, (void *)(intptr_t)fd))
			pthread_detach(thread);
	}
	return NULL;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	return bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 16) < 0 ? -1 : fd;
}

static int serve(const char *path)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	static int listener, other;
	socklen_t length = sizeof address;
	pthread_t thread;
	char byte;

	other = path ? listen_at(path) : -1;
	if (path && other < 0) {
		perror(path);
		return 1;
	}

	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 16) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
		perror("gpu-floor");
		return 1;
	}
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	pthread_create(&thread, NULL, accept_all, &listener);
	if (path)
		pthread_create(&thread, NULL, accept_all, &other);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

static int reach(const char *where)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd;

	if (where[0] == '/') {
		struct sockaddr_un path = {.sun_family = AF_UNIX};

		strncpy(path.sun_path, where, sizeof path.sun_path - 1);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		return connect(fd, (struct sockaddr *)&path, sizeof path) ? -1 : fd;
	}
	fd = socket(AF_INET, SOCK_STREAM, 0);
	address.sin_port = htons((uint16_t)atoi(where));
	undelayed(fd);
	return connect(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

static int ask(int fd, char what, uint64_t size)
{
	unsigned char request[REQUEST] = {(unsigned char)what};
	char byte;

	memcpy(request + 1, &size, sizeof size);
	if (put(fd, request, sizeof request))
		return -1;
	if (what == 'd')
		return move(get, fd, size);
	return (what == 'h' && move(put_any, fd, size)) || get(fd, &byte, 1);
}

int main(int argc, char **argv)
{
	char line[LINE], what[16];
	unsigned long amount;
	int fd;

	if (argc == 3 ? strcmp(argv[1], "serve") : argc != 2)
		return 2;
	if (!strcmp(argv[1], "serve"))
		return serve(argv[2]);
	fd = reach(argv[1]);
	if (fd < 0) {
		perror("gpu-floor");
		return 1;
	}
	while (fgets(line, sizeof line, stdin)) {
		double began = now();
		int failed = 0;

		if (sscanf(line, "%15s %lu", what, &amount) != 2)
			return 2;
		if (what[0] == 'p')
			for (unsigned long i = 0; i < amount && !failed; i++)
				failed = ask(fd, 'p', 0);
		else
			failed = ask(fd, what[0], amount);
		if (failed) {
			fputs("gpu-floor: the other end is gone\n", stderr);
			return 1;
		}
		printf("%.9f\n", now() - began);
		fflush(stdout);
	}
	return 0;
}
