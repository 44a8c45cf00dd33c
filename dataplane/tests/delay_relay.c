/* A link with a delay, where the kernel has no netem: a TCP relay that holds every byte back for a time.
 *
 *   delay-relay PORT MICROSECONDS
 *
 * Prints the port of 127.0.0.1 that it listens on, and relays to PORT until its standard input ends. Each direction of a
 * connection has a thread that reads and one that writes what is due, so a burst does not wait for the one before it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, HELD_MAX = 128 << 20 };

struct chunk {
	struct chunk *next;
	int64_t due;
	ssize_t length; /* 0: the end */
	char bytes[CHUNK];
};

struct direction {
	int from, to;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct chunk *first, **last, *spare;
	size_t held;
};

static int64_t delay_ns;
static struct sockaddr_in target = {.sin_family = AF_INET};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct chunk *chunk_get(struct direction *direction)
{
	struct chunk *chunk;

	pthread_mutex_lock(&direction->lock);
	while (direction->held > HELD_MAX)
		pthread_cond_wait(&direction->changed, &direction->lock);
	chunk = direction->spare;
	if (chunk)
		direction->spare = chunk->next;
	pthread_mutex_unlock(&direction->lock);
	if (!chunk && !(chunk = malloc(sizeof *chunk)))
		abort();
	return chunk;
}

static void *reader(void *argument)
{
	struct direction *direction = argument;
	struct chunk *chunk;
	ssize_t length;

	do {
		chunk = chunk_get(direction);
		length = recv(direction->from, chunk->bytes, CHUNK, 0);
		chunk->due = now_ns() + delay_ns;
		chunk->length = length > 0 ? length : 0;
		chunk->next = NULL;
		pthread_mutex_lock(&direction->lock);
		*direction->last = chunk;
		direction->last = &chunk->next;
		direction->held += (size_t)chunk->length;
		pthread_cond_broadcast(&direction->changed);
		pthread_mutex_unlock(&direction->lock);
	} while (length > 0);
	return NULL;
}

static void *writer(void *argument)
{
	struct direction *direction = argument;
	struct chunk *chunk;
	ssize_t length;

	prctl(PR_SET_TIMERSLACK, 1000UL);
	do {
		struct timespec due;

		pthread_mutex_lock(&direction->lock);
		while (!direction->first)
			pthread_cond_wait(&direction->changed, &direction->lock);
		chunk = direction->first;
		direction->first = chunk->next;
		if (!direction->first)
			direction->last = &direction->first;
		pthread_mutex_unlock(&direction->lock);
		due = (struct timespec){chunk->due / 1000000000, chunk->due % 1000000000};
		while (now_ns() < chunk->due)
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
		length = chunk->length;
		for (ssize_t sent = 0, part; sent < length; sent += part) {
			part = send(direction->to, chunk->bytes + sent, (size_t)(length - sent), MSG_NOSIGNAL);
			if (part <= 0)
				break;
		}
		pthread_mutex_lock(&direction->lock);
		direction->held -= (size_t)length;
		chunk->next = direction->spare;
		direction->spare = chunk;
		pthread_cond_broadcast(&direction->changed);
		pthread_mutex_unlock(&direction->lock);
	} while (length > 0);
	shutdown(direction->to, SHUT_WR);
	shutdown(direction->from, SHUT_RD);
	return NULL;
}

static void begin(int from, int to)
{
	struct direction *direction = calloc(1, sizeof *direction);
	pthread_t thread;
	int one = 1;

	if (!direction)
		abort();
	setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	direction->from = from;
	direction->to = to;
	direction->last = &direction->first;
	pthread_mutex_init(&direction->lock, NULL);
	pthread_cond_init(&direction->changed, NULL);
	pthread_create(&thread, NULL, reader, direction);
	pthread_create(&thread, NULL, writer, direction);
}

static void *accepter(void *argument)
{
	int listener = *(int *)argument;

	for (;;) {
		int here = accept(listener, NULL, NULL), there = socket(AF_INET, SOCK_STREAM, 0);

		if (here < 0 || there < 0 || connect(there, (struct sockaddr *)&target, sizeof target) < 0) {
			close(here);
			close(there);
			continue;
		}
		begin(here, there);
		begin(there, here);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof address;
	pthread_t thread;
	char byte;

	if (argc != 3)
		return 2;
	target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	target.sin_port = htons((uint16_t)atoi(argv[1]));
	delay_ns = atoll(argv[2]) * 1000;
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
		perror("delay-relay");
		return 1;
	}
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	pthread_create(&thread, NULL, accepter, &listener);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
