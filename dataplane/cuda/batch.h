/* Requests that nobody waits for, gathered: a system call for each would cost more than to serve it, and wake every
 * process on the way. They go with the next request that is waited for, when there are many, or soon by themselves. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { BATCH = 16 * 1024 };

struct batch {
	size_t used;
	pthread_cond_t filled; /* with the sender's mutex */
	bool running, idle;    /* the thread that sends what nobody else sends */
	uint8_t data[BATCH];
};

void batch_init(struct batch *batch);

/* Add pieces. Returns false where they do not fit. */
bool batch_add(struct batch *batch, const struct iovec *pieces, unsigned count);
