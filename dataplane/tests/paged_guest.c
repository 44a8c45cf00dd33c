/* Stands in for QEMU and its guest: maps a file, and does what its standard input says, a line each; answers a line.
 *
 *   fill SEED         write a pattern into every page
 *   check SEED        count the pages that do not have it
 *   zero FIRST COUNT  discard pages, as virtio-mem does
 *   write PAGE VALUE / read PAGE      a page that is broken is a SIGBUS, and the answer is "broken"
 *   probe             read every page: how many are broken
 *   stress THREADS SECONDS   write and verify pages at random; each write is remembered. Says how many were wrong, how many
 *                     pages were used, and the longest use of one in microseconds
 *   sum               verify every page that stress wrote
 *   faults COUNT THREADS   time reads of random pages by each thread until one has made COUNT: microseconds p50 and p99
 *                     and rate for a second of those that were not here
 *   load FILE [SKIP]  write a file's bytes into memory, again and again; MB/s as of a stream
 *   play FILE         read the pages that FILE, 32 bit numbers, says in its order: how many, and the seconds that took
 *   stream r|w [SKIP] read or write every byte in order: MB/s of what comes after the first SKIP pages
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, THREADS_MAX = 64 };

/* What takes less was no fault. */
static const double HIT_US = 3;

static uint64_t *memory;
static size_t pages;
static uint32_t *versions;
static int threads, file;
static double until;
static _Atomic long wrong, done, longest;

static sigjmp_buf broken;

static void on_sigbus(int number)
{
	(void)number;
	siglongjmp(broken, 1);
}

/* False: it is broken. */
static bool peek(size_t page, uint64_t *value)
{
	if (sigsetjmp(broken, 1))
		return false;
	*value = *(volatile uint64_t *)&memory[page * WORDS];
	return true;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t pattern(uint64_t seed, size_t word)
{
	/* Every eighth page is zeros. */
	return word / WORDS % 8 == 7 ? 0 : (seed + word) * 0x9e3779b97f4a7c15ULL;
}

static uint64_t expected(size_t page)
{
	return versions[page] ? (uint64_t)versions[page] << 32 | page : 0;
}

static void *worker(void *argument)
{
	size_t number = (size_t)argument;
	uint64_t random = number * 7919 + 88172645463325252ULL;
	long count = 0, most = 0, before;
	double begun;

	while (now() < until)
		for (int i = 0; i < 50; i++, count++) {
			size_t page;
			uint64_t *at;

			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			page = (random >> 20) % (pages / (size_t)threads) * (size_t)threads + number;
			at = memory + page * WORDS;
			begun = now();
			for (int word = 0; word < WORDS; word += 32)
				wrong += at[word] != expected(page);
			if (!(random % 3)) {
				versions[page]++;
				for (int word = 0; word < WORDS; word++)
					at[word] = expected(page);
			}
			if ((now() - begun) * 1e6 > (double)most)
				most = (long)((now() - begun) * 1e6);
		}
	done += count;
	for (before = longest; before < most && !atomic_compare_exchange_weak(&longest, &before, most);)
		;
	return NULL;
}

static void stress(int count, double seconds)
{
	pthread_t ids[THREADS_MAX];

	threads = count;
	wrong = done = longest = 0;
	until = now() + seconds;
	for (size_t i = 0; i < (size_t)threads; i++)
		pthread_create(&ids[i], NULL, worker, (void *)i);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	printf("wrong %ld done %ld longest %ld\n", wrong, done, longest);
}

static int by_time(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

static size_t fault_count;
static uint64_t fault_run;
static double *took;
static size_t fault_done[THREADS_MAX];
static _Atomic bool fault_enough;

/* A number that has nothing to do with its neighbours' (Steele, Lea and Flood, OOPSLA 2014). */
static uint64_t scrambled(uint64_t number)
{
	number = (number + 1) * 0x9e3779b97f4a7c15ULL;
	number = (number ^ number >> 30) * 0xbf58476d1ce4e5b9ULL;
	number = (number ^ number >> 27) * 0x94d049bb133111ebULL;
	return number ^ number >> 31;
}

static void *fault_worker(void *argument)
{
	size_t number = (size_t)argument;
	volatile uint64_t sum = 0;

	size_t i;

	for (i = 0; i < fault_count && !fault_enough; i++) {
		size_t page = scrambled(fault_run << 40 | number << 32 | i) % pages;
		double begun = now();

		sum += memory[page * WORDS];
		took[number * fault_count + i] = (now() - begun) * 1e6;
	}
	fault_done[number] = i;
	fault_enough = true;
	return NULL;
}

static void faults(size_t count, int of)
{
	size_t all = 0, hits = 0;
	pthread_t ids[THREADS_MAX];
	double begun, elapsed;

	fault_count = count;
	fault_run++;
	fault_enough = false;
	took = calloc(count * (size_t)of, sizeof *took);
	begun = now();
	for (size_t i = 0; i < (size_t)of; i++)
		pthread_create(&ids[i], NULL, fault_worker, (void *)i);
	for (int i = 0; i < of; i++)
		pthread_join(ids[i], NULL);
	elapsed = now() - begun;
	for (size_t i = 0; i < (size_t)of; all += fault_done[i++])
		memmove(took + all, took + i * count, fault_done[i] * sizeof *took);
	qsort(took, all, sizeof *took, by_time);
	while (hits < all - 1 && took[hits] < HIT_US)
		hits++;
	all -= hits;
	printf("p50 %.2f p99 %.2f rate %.0f\n", took[hits + all / 2], took[hits + all * 99 / 100], (double)all / elapsed);
	free(took);
}

/* So that it is really read. */
static volatile uint64_t stream_sum;

static void stream(char kind, size_t skip)
{
	double begun = now();
	/* In a register: to keep it in memory takes a microsecond for a page, and has nothing to do with paging. */
	uint64_t sum = 0;

	for (size_t page = 0; page < pages; page++) {
		uint64_t *at = memory + page * WORDS;

		if (page == skip)
			begun = now();
		if (kind == 'w')
			for (size_t i = 0; i < WORDS; i++)
				at[i] = page + i + 1;
		else
			for (size_t i = 0; i < WORDS; i++)
				sum += at[i];
	}
	begun = now() - begun;
	stream_sum = sum;
	printf("MB/s %.1f seconds %.6f\n", (double)(pages - skip) * PAGE / 1e6 / begun, begun);
}

/* False: it cannot be read, or has not a page. */
static bool load(const char *path, size_t skip)
{
	int source = open(path, O_RDONLY | O_CLOEXEC);
	struct stat info;
	size_t count = source >= 0 && !fstat(source, &info) ? (size_t)info.st_size / PAGE : 0;
	char *bytes = count ? mmap(NULL, count * PAGE, PROT_READ, MAP_PRIVATE | MAP_POPULATE, source, 0) : MAP_FAILED;
	double begun = now();

	if (source >= 0)
		close(source);
	if (bytes == MAP_FAILED)
		return false;
	for (size_t page = 0; page < pages; page++) {
		if (page == skip)
			begun = now();
		memcpy(memory + page * WORDS, bytes + page % count * PAGE, PAGE);
	}
	begun = now() - begun;
	munmap(bytes, count * PAGE);
	printf("MB/s %.1f seconds %.6f\n", (double)(pages - skip) * PAGE / 1e6 / begun, begun);
	return true;
}

static void play(const char *name)
{
	uint32_t *trace = MAP_FAILED;
	uint64_t sum = 0;
	struct stat info;
	double begun;
	size_t count;
	int from = open(name, O_RDONLY);

	if (from >= 0 && !fstat(from, &info))
		trace = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, from, 0);
	if (from >= 0)
		close(from);
	if (trace == MAP_FAILED) {
		puts("failed");
		return;
	}
	count = (size_t)info.st_size / sizeof *trace;
	begun = now();
	for (size_t i = 0; i < count; i++)
		sum += memory[trace[i] % pages * WORDS];
	begun = now() - begun;
	stream_sum = sum;
	munmap(trace, (size_t)info.st_size);
	printf("uses %zu seconds %.6f\n", count, begun);
}

int main(int argc, char **argv)
{
	char line[512], path[400], kind;
	uint64_t seed;
	size_t first, count;
	struct stat info;
	double seconds;
	int number;

	if (argc < 2 || (file = open(argv[1], O_RDWR)) < 0 || fstat(file, &info) < 0)
		return 2;
	pages = (size_t)info.st_size / PAGE;
	versions = calloc(pages, sizeof *versions);
	memory = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	signal(SIGBUS, on_sigbus);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("mapped");
	while (fgets(line, sizeof line, stdin)) {
		size_t bad = 0;

		if (sscanf(line, "fill %lu", &seed) == 1) {
			for (size_t i = 0; i < pages * WORDS; i++)
				memory[i] = pattern(seed, i);
			puts("filled");
		} else if (sscanf(line, "check %lu", &seed) == 1) {
			for (size_t page = 0; page < pages; page++)
				for (size_t i = page * WORDS; i < (page + 1) * WORDS; i++)
					if (memory[i] != pattern(seed, i)) {
						bad++;
						break;
					}
			printf("wrong %zu\n", bad);
		} else if (sscanf(line, "zero %zu %zu", &first, &count) == 2) {
			int failed = fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first * PAGE,
					       (off_t)count * PAGE) ||
				     madvise(memory + first * WORDS, count * PAGE, MADV_DONTNEED);

			puts(failed ? "failed" : "zeroed");
		} else if (sscanf(line, "write %zu %lu", &first, &seed) == 2) {
			memory[first * WORDS] = seed;
			puts("written");
		} else if (sscanf(line, "read %zu", &first) == 1) {
			if (peek(first, &seed))
				printf("value %lu\n", seed);
			else
				puts("broken");
		} else if (!strcmp(line, "probe\n")) {
			for (size_t page = 0; page < pages; page++)
				bad += !peek(page, &seed);
			printf("broken %zu\n", bad);
		} else if (sscanf(line, "stress %d %lf", &number, &seconds) == 2 && number <= THREADS_MAX) {
			stress(number, seconds);
		} else if (!strcmp(line, "sum\n")) {
			for (size_t page = 0; page < pages; page++)
				for (int word = 0; word < WORDS; word++)
					if (memory[page * WORDS + (size_t)word] != expected(page)) {
						bad++;
						break;
					}
			printf("wrong %zu\n", bad);
		} else if (sscanf(line, "faults %zu %d", &count, &number) == 2 && number > 0 && number <= THREADS_MAX) {
			faults(count, number);
		} else if (sscanf(line, "play %399s", path) == 1) {
			play(path);
		} else if ((number = sscanf(line, "stream %c %zu", &kind, &first)) >= 1 && (number == 1 || first < pages)) {
			stream(kind, number == 1 ? 0 : first);
		} else if ((number = sscanf(line, "load %399s %zu", path, &first)) >= 1 && (number == 1 || first < pages)) {
			if (!load(path, number == 1 ? 0 : first))
				puts("cannot load");
		} else {
			puts("what?");
		}
	}
	munmap(memory, (size_t)info.st_size);
	return 0;
}
