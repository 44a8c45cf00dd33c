/* What each verb of a request does. */
#pragma once

#include "holder.h"
#include "packet.h"

/* A request, where it came from, and what is to be answered. */
struct call {
	const struct request *request;
	struct packet *packet; /* what `request` points into; descriptors that are not taken are closed afterwards */
	bool *watching;
	struct reply *reply; /* "ok" so far */
	int answer_fd;	     /* sent with the answer, stays open */
	struct refusal *why;
};

/* Do what is asked. False: refused, see `why`. */
bool verb_run(struct holder *holder, struct call *call);
