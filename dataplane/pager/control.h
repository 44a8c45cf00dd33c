/* The control socket of the pager (docs/internals/pager-protocol.md): the controller's engine, and the library in QEMU. */
#pragma once

#include "engine.h"
#include "loop.h"

struct connection;

struct control {
	struct loop loop;
	struct engine *engine;
	int holder;
	struct source listener;
	unsigned connections;
	int spare; /* of packet_accept() */
	struct source sampled;	      /* raised when a sample ended */
	struct connection *sampler; /* who waits for it */
	/* Regions that an earlier pager left with records that this one cannot read. */
	char left[REGIONS_MAX][REGION_ID_MAX + 1];
	unsigned left_count;
};

/* Serve on a listening seqpacket socket. */
bool control_open(struct control *control, int listener);

/* Take over what an earlier pager left with the holder. */
bool control_take_over(struct control *control);
