/* One program started as a child that dies with the holder and has only what it was given. */
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include "message.h"
#include "request.h"

struct launch {
	const struct request *request;
	const int *fds; /* request->targetc of them; they become request->targets */
	int out, err;   /* what becomes stdout and stderr */
	struct rlimit files;
};

/* Start the program and return its pid once it is executing, or -1 with the step and errno that failed in `why`. */
pid_t spawn(const struct launch *launch, struct refusal *why);
