/* Requests: one packet parsed into one struct, without allocation and without trust. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bounds.h"
#include "message.h"

enum verb {
	VERB_HELLO,
	VERB_SPAWN,
	VERB_LIST,
	VERB_SIGNAL,
	VERB_STOP,
	VERB_FORGET,
	VERB_KEEP,
	VERB_FETCH,
	VERB_DROP,
	VERB_NAMES,
	VERB_WATCH,
	VERB_SHUTDOWN,
	VERB_COUNT,
};

enum restart { RESTART_NEVER, RESTART_ON_FAILURE };

/* Text points into the packet, which must live as long as the struct. What was not given is NULL or its default. */
struct request {
	enum verb verb;
	const char *id;
	const char *name;
	const char *cwd;
	const char *stdout_log;
	const char *stderr_log;
	const char *cgroup;
	uint64_t version;
	uint64_t log_limit;
	uint64_t restart;
	uint64_t restart_max;
	uint64_t main;
	uint64_t sig;
	uint64_t grace_ms;
	unsigned argc;
	unsigned envc;
	unsigned targetc;
	char *argv[ARGS_MAX + 1];
	char *envp[ENV_MAX + 1];
	int targets[FDS_MAX];
};

/* Parse `packet`, which came with `fds` descriptors. On refusal returns false and says why; `request` is then void. */
bool request_parse(char *packet, size_t length, size_t fds, struct request *request, struct refusal *why);

/* Whether `text` can name a child, a kept descriptor or a holder: 1 to LABEL_MAX of [a-z0-9._-]. */
bool label_valid(const char *text);
