/* HPC Challenge's STREAM and single-process RandomAccess, from its own sources (tools/bench-programs fetches them):
 *
 *   hpcc-kernels stream BYTES [FILE]           the stock run, over three arrays of BYTES together
 *   hpcc-kernels random BYTES SECONDS [FILE [unverified]]   the stock update loop over a table of BYTES while there is time
 *
 * Memory comes from malloc, or from the shared mapping of FILE unless that is `-`. stream prints `copy MB/s scale MB/s add MB/s triad MB/s`;
 * random prints `updates N wrong N`, N updates in a second and what is wrong in the table after all of them were undone.
 *
 * What is not as in the stock program, because a run over a slow link would take days: STREAM makes BENCH_TIMES passes and
 * not 10; RandomAccess makes as many updates as there is time for, and not four for each word of the table.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <hpcc.h>

static char *arena;
static size_t arena_size, arena_used;

void *HPCC_malloc(size_t size)
{
	char *block = arena + arena_used;

	if (!arena || size < 4096)
		return malloc(size);
	arena_used += (size + 4095) / 4096 * 4096;
	return arena_used <= arena_size ? block : NULL;
}

void HPCC_free(void *block)
{
	if (!arena || (char *)block < arena || (char *)block >= arena + arena_size)
		free(block);
}

static size_t bytes;

int HPCC_LocalVectorSize(HPCC_Params *params, int vectors, size_t size, int power_of_two)
{
	(void)params;
	(void)power_of_two;
	return (int)(bytes / (size_t)vectors / size);
}

/* Only the stock program's own report, which is not used, wants it. */
double HPL_timer_cputime(void)
{
	return 0;
}

static u64Int first_update, update_count;

/* Parts of core_single_cpu.c, so that its static function can be called. */
#define BENCH_UPDATES update_count
#define BENCH_FIRST first_update
#include "core_single_cpu_bench.c"

static void stream(void)
{
	double copy, scale, add, triad;
	static HPCC_Params params;
	int threads;

	if (HPCC_Stream(&params, 0, MPI_COMM_WORLD, 0, &copy, &scale, &add, &triad, &threads))
		exit(1);
	printf("copy %.2f scale %.2f add %.2f triad %.2f\n", copy * 1e3, scale * 1e3, add * 1e3, triad * 1e3);
}

static void random_access(double seconds, bool verify)
{
	enum { PARTS_MAX = 1 << 20 };
	static u64Int counts[PARTS_MAX];
	u64Int size = 1, *table, done = 0, wrong = 0;
	double begun, took = 0;
	unsigned parts = 0;

	while (size * 2 * sizeof *table <= bytes)
		size *= 2;
	table = HPCC_XMALLOC(u64Int, size);
	if (!table)
		exit(1);
	for (u64Int i = 0; i < size; i++)
		table[i] = i;
	begun = MPI_Wtime();
	for (update_count = 128; took < seconds && parts < PARTS_MAX; parts++) {
		double before = took;

		counts[parts] = update_count;
		first_update = done;
		RandomAccessUpdate(size, table);
		done += update_count;
		took = MPI_Wtime() - begun;
		/* Parts of a twentieth of the time, about. */
		if (took - before < seconds / 20)
			update_count *= 2;
	}
	printf("updates %.1f ", (double)done / took);
	fflush(stdout);
	if (verify) {
		first_update = 0;
		for (unsigned i = 0; i < parts; i++) {
			update_count = counts[i];
			RandomAccessUpdate(size, table);
			first_update += update_count;
		}
		for (u64Int i = 0; i < size; i++)
			wrong += table[i] != i;
	}
	printf("wrong %lu\n", (unsigned long)wrong);
}

int main(int argc, char **argv)
{
	bool random = argc > 3 && !strcmp(argv[1], "random"), is_stream = argc > 2 && !strcmp(argv[1], "stream");
	const char *path = random && argc > 4 ? argv[4] : is_stream && argc > 3 ? argv[3] : NULL;
	struct stat info;

	if (!random && !is_stream)
		return 2;
	bytes = strtoull(argv[2], NULL, 10);
	if (path && strcmp(path, "-")) {
		int fd = open(path, O_RDWR);

		if (fd < 0 || fstat(fd, &info) < 0)
			return 1;
		arena_size = (size_t)info.st_size;
		arena = mmap(NULL, arena_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (arena == MAP_FAILED)
			return 1;
	}
	if (random)
		random_access(atof(argv[3]), argc < 6);
	else
		stream();
	return 0;
}
