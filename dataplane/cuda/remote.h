/* A connection of this process to one lender's GPU. Any thread may send and wait; none has to: whoever waits for an
 * answer reads those of the others too. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "batch.h"
#include "table.h"
#include "wire.h"

enum { GPUS_MAX = 16, ATTRIBUTES_MAX = 256, HELLO_MS = 10000 };

/* Where an answer goes. */
struct waiter {
	struct waiter *next;
	struct answer answer;
	uint8_t *to; /* `room` bytes; with `grows`, allocated for an answer that needs more than that, up to `most` */
	size_t room, most;
	bool grows;
	bool own;  /* nobody waits for it: it is freed when the answer has come */
	bool done;
};

struct layout {
	uint64_t function;
	size_t count, size; /* parameters; bytes of all of them */
	struct place {
		size_t offset, size;
	} *places;
	char *name;
};

struct remote {
	int fd;
	unsigned gpu; /* its number in this process */
	int version;  /* of the lender's driver */
	atomic_bool lost;

	pthread_mutex_t sending; /* of these two */
	uint32_t sequence;
	struct batch batch;

	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t moved;
	bool reading; /* a thread is in `receive` */
	struct waiter *first;

	/* Of the thread that reads. */
	int patience; /* ms without an answer; -1: a kernel may run for ever */
	uint8_t header[ANSWER_SIZE];
	size_t have;
	struct answer answer;
	struct waiter *current;

	pthread_mutex_t known; /* of what is remembered */
	struct table memory;
	int attributes[ATTRIBUTES_MAX];
	bool has_attribute[ATTRIBUTES_MAX];
	struct layout *layouts;
	size_t layouts_count;
};

/* Connect to a Unix socket and say hello. Returns false where there is no GPU behind it. */
bool remote_open(struct remote *remote, const char *path, unsigned gpu);

/* Prepare what sending and waiting need; `fd` is a connected stream socket. */
void remote_init(struct remote *remote, int fd, unsigned gpu);

/* Send a request, made of pieces; `waiter` NULL: nobody waits, and a small one may wait for more. Returns false if the
 * lender is lost. */
bool remote_send(struct remote *remote, struct request *request, const struct iovec *pieces, unsigned count,
		 struct waiter *waiter);

/* The process ends: send what waits for more, if that can be done at once. */
void remote_end(struct remote *remote);

/* Returns once the answer is there, or false: the lender is lost. */
bool remote_wait(struct remote *remote, struct waiter *waiter);
