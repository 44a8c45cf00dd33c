/* The children: started, watched, restarted, stopped, remembered after their end until they are forgotten. */
#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include "log.h"
#include "loop.h"
#include "message.h"
#include "packet.h"
#include "request.h"

enum child_state {
	CHILD_RUNNING,
	CHILD_WAITING,  /* ended, will be restarted */
	CHILD_EXITED,
	CHILD_SIGNALED,
	CHILD_FAILED, /* could not be started again; code is the errno */
};

struct children;

/* A pipe from a child to a log. */
struct pump {
	struct source source;
	struct loop *loop;
	struct log *log;
};

struct child {
	TAILQ_ENTRY(child) link;
	struct children *all;
	char *packet; /* what `request` points into */
	struct request *request;
	int fds[FDS_MAX];
	struct pump out, err;
	struct timer timer; /* running: SIGKILL after the grace; waiting: the restart */
	enum child_state state;
	enum child_state ended; /* how it ended last: exited, signaled or failed */
	bool stopping;
	pid_t pid;
	int code, signal;
	unsigned restarts, in_a_row;
	int64_t started;
};

struct children {
	TAILQ_HEAD(, child) list;
	unsigned count;
	struct loop *loop;
	struct logs logs;
	struct rlimit files; /* what children get as RLIMIT_NOFILE */
	/* Called at each end of a child, after its last output is in its log; and, with `cancelled`, when the restart
	 * that was to follow is called off. */
	void (*ended)(struct children *children, const struct child *child, bool cancelled);
};

void children_init(struct children *children, struct loop *loop, const struct rlimit *files);
struct child *children_find(struct children *children, const char *id);

/* How many are running or waiting for their restart. */
unsigned children_live(const struct children *children);
bool child_live(const struct child *child);

/* Start a child from a parsed spawn request that points into `packet`, whose descriptors it takes. */
struct child *children_spawn(struct children *children, const struct request *request, struct packet *packet,
			     struct refusal *why);

/* SIGTERM now, SIGKILL to its process group after the grace; no restart. Again: the sooner end of grace counts. */
void child_stop(struct child *child, int64_t grace_ms);
void children_stop(struct children *children, int64_t grace_ms);

/* Forget an ended child. */
void child_forget(struct child *child);

/* Take care of every process that ended (SIGCHLD). */
void children_reap(struct children *children);

const char *child_state_name(enum child_state state);
uint64_t child_dropped(const struct child *child);
