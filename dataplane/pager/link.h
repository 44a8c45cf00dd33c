/* One connection to a store: NBD over TLS-PSK through libnbd, asynchronous, with deadlines of our own.
 *
 * libnbd does the protocol and never waits here; a lane waits for many links at once. A link on which requests wait and
 * none was answered for a deadline is ended, because NBD cannot cancel a request; so does anything that the server does
 * wrong. The requests of a link that ended are handed back as failed; it is opened again after a pause that grows.
 */
#pragma once

#include <libnbd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "flow.h"
#include "hedge.h"
#include "histogram.h"
#include "meta.h"

enum link_state {
	LINK_DOWN,	 /* opened again when its pause is over */
	LINK_CONNECTING,
	LINK_READY,
	LINK_REFUSED,	 /* the server answers, but not with these bytes: it began anew, or has another size */
};

/* What went over the links to a store. */
struct meter {
	struct histogram latency; /* of reads of one page */
	_Atomic uint64_t bytes_in, bytes_out;
	_Atomic uint64_t plain_in, plain_out; /* bytes of the pages that those were */
	pthread_mutex_t lock;
	struct flow flow; /* under the lock */
};

void meter_init(struct meter *meter);

/* Another store is behind it: nothing is known of that one. */
void meter_reset(struct meter *meter);

/* Bytes a second that the store was seen to take or give; 0: not known. */
uint64_t meter_rate(struct meter *meter);

struct link;

struct request {
	TAILQ_ENTRY(request) entry;
	struct link *link;
	void *owner; /* NULL: nobody wants the answer any more */
	char *buffer;
	uint32_t bytes;
	uint32_t pages;
	bool timed; /* a page by itself, so that it tells how long one takes */
	bool write;
	bool trim; /* a write without bytes: the store forgets what it has there */
	bool failed;
	int64_t sent_us;
};

TAILQ_HEAD(requests, request);

struct link {
	enum link_state state;
	struct nbd_handle *nbd;
	int epoll;
	void *tag; /* what the epoll event carries */
	int fd;
	bool corked; /* packets that are not full wait, because more is to come */
	unsigned direction;
	struct requests sent; /* the oldest first */
	struct requests *done;
	struct meter *meter; /* of all links to the store */
	unsigned sent_count;
	uint64_t sent_bytes;
	uint64_t size;
	int64_t deadline_us; /* of a request, or of the connection */
	int64_t connecting_us;
	int64_t progress_us; /* the last answer */
	int64_t retry_us; /* when to open it again */
	int64_t pause_us;
	struct pace pace; /* of single pages */
	char why[128];	 /* it is not ready */
	int left; /* what is left of a connection that was ended with writes unanswered; -1: nothing */
	struct limbo *limbo;
	uint32_t serial; /* of the description that it was opened with */
};

/* Microseconds of CLOCK_MONOTONIC. */
int64_t now_us(void);

void link_init(struct link *link, int epoll, void *tag, struct requests *done, struct meter *meter,
	       int64_t deadline_us);

/* Begin to connect to a store whose export must have `size` bytes. */
void link_open(struct link *link, const struct meta_store *store, uint64_t size);

/* Something happened on its descriptor. */
void link_ready(struct link *link, unsigned events);

/* Send a request; its answer comes through `done`. The buffer must live until then, or until the link was closed. */
void link_send(struct link *link, struct request *request, uint64_t offset);

/* End the connection if a deadline passed. Returns when to look again, INT64_MAX for never, or -1 if it was ended for
 * requests that were not answered. */
int64_t link_check(struct link *link, int64_t now);

/* End the connection; its requests come through `done` as failed. It may be opened again at once. */
void link_close(struct link *link, const char *why);
