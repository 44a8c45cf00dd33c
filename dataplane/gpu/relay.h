/* The guest's end: carries the byte streams of programs over one port to the lender's bridge
 * (docs/internals/gpu-protocol.md). It knows nothing of the guest besides the descriptors that it was given. */
#pragma once

#include "bytes.h"
#include "frame.h"
#include "watch.h"

enum { SERVICES_MAX = 8, RELAY_IN = 256 * 1024 };

/* A program's connection. */
struct line {
	struct watch watch; /* its descriptor: -1 once it was closed here */
	bool open;	    /* the number is in use */
	bool ended_there;   /* CLOSE came */
	uint32_t room;	    /* what the lender still takes */
	uint32_t may_come;  /* what it may still send */
	uint32_t taken;	    /* not told to it yet */
	struct bytes queue; /* for the program */
};

struct relay {
	int epoll;
	struct watch port;
	struct watch listeners[SERVICES_MAX]; /* -1 where there is no such service */
	struct line lines[STREAMS + 1];	      /* 0 is not used */
	unsigned lines_open;
	struct bytes out; /* to the port */
	uint8_t in[RELAY_IN];
	size_t have;	  /* of `in` */
	unsigned current; /* the stream whose data comes, `left` bytes more */
	uint32_t left;
	const char *why; /* it ended */
};

/* `port` and `listeners`, by service, -1 where there is none, become the relay's. Returns false, with errno, where it
 * cannot begin. */
bool relay_open(struct relay *relay, int port, const int *listeners);

/* Say hello and wait `ms` for the answer; what was on its way for an earlier relay is dropped. False, with `why`, where
 * there is none. */
bool relay_greet(struct relay *relay, int ms);

/* Carry bytes until the port's other side is gone, or breaks the protocol; `why` tells which. */
void relay_run(struct relay *relay);
void relay_close(struct relay *relay);
