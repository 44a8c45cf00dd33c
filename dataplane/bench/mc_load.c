/* Load for memcached, as its own generators make it: GETs and some SETs of Zipf-distributed keys.
 *
 *   mc-load SOCKET fill KEYS BYTES
 *   mc-load SOCKET run KEYS BYTES THREADS SECONDS SETS-PERCENT
 *
 * One connection for each thread and one request at a time on each, so a page that is awaited holds up that thread
 * alone. Keys have ranks by Zipf's law with exponent 0.99, as YCSB's, scattered over the memory. A GET's bytes are
 * verified. Prints `ops N p50 US p99 US misses N wrong N`, N operations in a second.
 */
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 64, VALUE_MAX = 64 << 10, SAMPLES_MAX = 1 << 22 };

static const char *path;
static uint64_t keys;
static size_t bytes;
static unsigned sets;
static double until;
static double *chance; /* cumulated, by rank */

struct worker {
	pthread_t thread;
	uint64_t random;
	float *took;
	size_t count, misses, wrong;
};

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int dial(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		fail(path);
	return fd;
}

static uint64_t number(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	*random ^= *random << 17;
	return *random;
}

static uint64_t pick(uint64_t *random)
{
	double at = (double)(number(random) >> 11) / (double)(1ULL << 53);
	uint64_t low = 0, high = keys - 1;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (chance[middle] < at)
			low = middle + 1;
		else
			high = middle;
	}
	/* Neighbours in popularity are no neighbours in memory. */
	return low * 2654435761ULL % keys;
}

static void value(uint64_t key, char *to)
{
	for (size_t i = 0; i + 8 <= bytes; i += 8) {
		uint64_t word = (key + 1) * 0x9e3779b97f4a7c15ULL ^ i;

		memcpy(to + i, &word, 8);
	}
}

static void send_all(int fd, const char *from, size_t length)
{
	while (length) {
		ssize_t sent = send(fd, from, length, MSG_NOSIGNAL);

		if (sent <= 0)
			fail("send");
		from += sent;
		length -= (size_t)sent;
	}
}

/* Read until what came ends as an answer does; returns its length. */
static size_t answer(int fd, char *to, bool get)
{
	size_t length = 0;

	for (;;) {
		ssize_t got = recv(fd, to + length, VALUE_MAX + 512 - length, 0);

		if (got <= 0)
			fail("recv");
		length += (size_t)got;
		if (get ? length >= 5 && !memcmp(to + length - 5, "END\r\n", 5) : to[length - 1] == '\n')
			return length;
	}
}

static void set(int fd, uint64_t key, char *buffer, bool wait)
{
	size_t length = (size_t)sprintf(buffer, "set key-%010lu 0 0 %zu%s\r\n", key, bytes, wait ? "" : " noreply");

	memset(buffer + length, 0, bytes);
	value(key, buffer + length);
	memcpy(buffer + length + bytes, "\r\n", 2);
	send_all(fd, buffer, length + bytes + 2);
	if (wait)
		answer(fd, buffer, false);
}

static void *work(void *argument)
{
	char *buffer = malloc(VALUE_MAX + 512), *expected = calloc(1, VALUE_MAX);
	struct worker *worker = argument;
	int fd = dial();

	while (now() < until && worker->count < SAMPLES_MAX) {
		bool get = number(&worker->random) % 100 >= sets;
		uint64_t key = pick(&worker->random);
		double begun = now();
		size_t length;

		if (get) {
			length = (size_t)sprintf(buffer, "get key-%010lu\r\n", key);
			send_all(fd, buffer, length);
			length = answer(fd, buffer, true);
			value(key, expected);
			if (length < bytes + 7)
				worker->misses++;
			else
				worker->wrong += !!memcmp(buffer + length - 7 - bytes, expected, bytes);
		} else {
			set(fd, key, buffer, true);
		}
		worker->took[worker->count++] = (float)((now() - begun) * 1e6);
	}
	close(fd);
	free(buffer);
	free(expected);
	return NULL;
}

static int by_time(const void *left, const void *right)
{
	float a = *(const float *)left, b = *(const float *)right;

	return (a > b) - (a < b);
}

static void run(unsigned threads, double seconds)
{
	static struct worker workers[THREADS_MAX];
	size_t count = 0, misses = 0, wrong = 0;
	double begun, sum = 0;
	float *all;

	chance = malloc(keys * sizeof *chance);
	for (uint64_t rank = 0; rank < keys; rank++)
		chance[rank] = sum += 1 / pow((double)rank + 1, 0.99);
	for (uint64_t rank = 0; rank < keys; rank++)
		chance[rank] /= sum;
	begun = now();
	until = begun + seconds;
	for (unsigned i = 0; i < threads; i++) {
		workers[i].random = 88172645463325252ULL + i * 7919;
		workers[i].took = malloc(SAMPLES_MAX * sizeof(float));
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(workers[i].thread, NULL);
		count += workers[i].count;
		misses += workers[i].misses;
		wrong += workers[i].wrong;
	}
	begun = now() - begun;
	all = malloc((count + 1) * sizeof *all);
	count = 0;
	for (unsigned i = 0; i < threads; i++) {
		memcpy(all + count, workers[i].took, workers[i].count * sizeof *all);
		count += workers[i].count;
		free(workers[i].took);
	}
	qsort(all, count, sizeof *all, by_time);
	printf("ops %.1f p50 %.1f p99 %.1f misses %zu wrong %zu\n", (double)count / begun, (double)all[count / 2],
	       (double)all[count * 99 / 100], misses, wrong);
	free(all);
	free(chance);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	path = argv[1];
	keys = strtoull(argv[3], NULL, 10);
	bytes = strtoull(argv[4], NULL, 10);
	if (!keys || bytes > VALUE_MAX)
		return 2;
	if (!strcmp(argv[2], "fill")) {
		char *buffer = malloc(VALUE_MAX + 512);
		int fd = dial();

		for (uint64_t key = 0; key < keys; key++)
			set(fd, key, buffer, key == keys - 1);
		free(buffer);
		puts("filled");
	} else if (!strcmp(argv[2], "run") && argc == 8 && atoi(argv[5]) <= THREADS_MAX) {
		sets = (unsigned)atoi(argv[7]);
		run((unsigned)atoi(argv[5]), atof(argv[6]));
	} else {
		return 2;
	}
	return 0;
}
