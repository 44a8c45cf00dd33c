/* MPI for one process: what the sources of HPC Challenge's STREAM and RandomAccess need of it, so that they are built
 * without an MPI (hpcc_kernels.c). */
#pragma once

#include <string.h>
#include <time.h>

typedef int MPI_Comm, MPI_Datatype, MPI_Op, MPI_Request;
typedef struct {
	int unused;
} MPI_Status;

enum { MPI_DOUBLE = sizeof(double), MPI_INT = sizeof(int), MPI_MIN = 0, MPI_COMM_WORLD = 0, MPI_COMM_NULL = -1 };

static inline double MPI_Wtime(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static inline int MPI_Comm_size(MPI_Comm comm, int *size)
{
	(void)comm;
	*size = 1;
	return 0;
}

static inline int MPI_Comm_rank(MPI_Comm comm, int *rank)
{
	(void)comm;
	*rank = 0;
	return 0;
}

#define MPI_Barrier(comm) ((void)(comm))
#define MPI_Abort(comm, code) exit(code)
#define MPI_Allreduce(from, to, count, type, operation, comm) ((void)(comm), memcpy(to, from, (size_t)(count) * (type)))
#define MPI_Gather(from, count, type, to, count2, type2, root, comm)                                                   \
	((void)(comm), memcpy(to, from, (size_t)(count) * (type)))
