/* The holder: its children, kept descriptors and connections, and the rules that join them. */
#pragma once

#include "child.h"
#include "log.h"
#include "loop.h"
#include "request.h"
#include "store.h"

struct connection;

struct holder {
	struct loop loop;
	struct children children;
	struct store store;
	struct log *exits;
	const char *name;
	struct source listener;
	LIST_HEAD(, connection) connections;
	unsigned connection_count;
	int spare; /* of packet_accept() */
	struct timer idle;
	int64_t idle_ms;
	bool closing;
	int64_t closing_grace_ms;
	bool done;
};

/* Stop everything and end: the main child first, if there is one, because it uses what the others serve. */
void holder_shutdown(struct holder *holder, int64_t grace_ms);

/* Between events: end when there is nothing left to do, or watch the idle time. */
void holder_review(struct holder *holder);

/* `children.ended`. */
void holder_child_ended(struct children *children, const struct child *child, bool cancelled);

/* `idle.fire`. */
void holder_idle_fired(struct timer *timer);
