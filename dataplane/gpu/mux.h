/* The lender's end of a shared connection: which streams there are, what each may send, and what the guest's bytes mean.
 *
 * It knows no descriptor and no clock. Whoever uses it feeds it what came, sends what is in `out`, and connects each
 * stream to a service. Anything that the protocol does not allow ends the connection: the guest is not trusted.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bytes.h"
#include "frame.h"

enum { IN_MAX = 256 * 1024, OUT_MAX = 512 * 1024, SERVICES = 3 };

struct stream {
	bool open;
	bool ended_here;  /* CLOSE was sent */
	bool ended_there; /* CLOSE came */
	unsigned service;
	uint32_t may_send;     /* what the guest still takes */
	uint32_t may_come;     /* what the guest may still send */
	uint32_t taken;	       /* not told to the guest yet */
	struct bytes arrived;  /* for the service */
};

struct mux;

struct mux_user {
	/* Connect a new stream to its service; false refuses it. */
	bool (*opened)(struct mux *mux, unsigned stream);
	/* Give the service what came, before anything waits in `arrived`; returns how much of it it took. */
	size_t (*give)(struct mux *mux, unsigned stream, const uint8_t *data, size_t size);
	/* Something waits in `arrived`, or the guest ended the stream (`ended_there`). */
	void (*arrived)(struct mux *mux, unsigned stream);
	/* The stream is no more: whatever is behind it is to be closed. */
	void (*gone)(struct mux *mux, unsigned stream);
};

struct mux {
	const struct mux_user *user;
	bool greeted;
	struct stream streams[STREAMS + 1]; /* 0 is not used */
	struct bytes in, out;
	unsigned current; /* the stream whose data comes, `left` bytes more */
	uint32_t left;
	const char *why; /* it was refused */
};

void mux_init(struct mux *mux, const struct mux_user *user);

/* Close every stream and forget the connection. */
void mux_reset(struct mux *mux);
void mux_free(struct mux *mux);

/* Understand what was added to `in`. Returns false, with `why`, where the guest broke the protocol. */
bool mux_understand(struct mux *mux);

/* How many bytes of a stream may be sent now: its credit, and the room in `out`. */
uint32_t mux_may_send(const struct mux *mux, unsigned stream);

/* A place for so many bytes, NULL without memory; then say how many there are, and of which stream. */
uint8_t *mux_room(struct mux *mux, uint32_t count);
void mux_sent(struct mux *mux, unsigned stream, uint32_t count);

/* The service took `count` bytes of what waits in `arrived`. Returns false where `out` has no room to tell. */
bool mux_taken(struct mux *mux, unsigned stream, uint32_t count);

/* The service ended the stream. */
bool mux_end(struct mux *mux, unsigned stream);
