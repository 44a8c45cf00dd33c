#include "child.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "cleanup.h"
#include "spawn.h"

void children_init(struct children *children, struct loop *loop, const struct rlimit *files)
{
	TAILQ_INIT(&children->list);
	LIST_INIT(&children->logs);
	children->loop = loop;
	children->files = *files;
}

struct child *children_find(struct children *children, const char *id)
{
	struct child *child;

	TAILQ_FOREACH (child, &children->list, link)
		if (!strcmp(child->request->id, id))
			return child;
	return NULL;
}

bool child_live(const struct child *child)
{
	return child->state == CHILD_RUNNING || child->state == CHILD_WAITING;
}

unsigned children_live(const struct children *children)
{
	const struct child *child;
	unsigned live = 0;

	TAILQ_FOREACH (child, &children->list, link)
		live += child_live(child);
	return live;
}

const char *child_state_name(enum child_state state)
{
	static const char *const names[] = {
		[CHILD_RUNNING] = "running",   [CHILD_WAITING] = "waiting", [CHILD_EXITED] = "exited",
		[CHILD_SIGNALED] = "signaled", [CHILD_FAILED] = "failed",
	};

	return names[state];
}

uint64_t child_dropped(const struct child *child)
{
	uint64_t dropped = child->out.log ? child->out.log->dropped : 0;

	if (child->err.log && child->err.log != child->out.log)
		dropped += child->err.log->dropped;
	return dropped;
}

/* Move what the pipe holds into the log. False at the end of the pipe or when nothing is there. */
static bool pump_some(struct pump *pump)
{
	static char buffer[64 * 1024];
	ssize_t count = read(pump->source.fd, buffer, sizeof buffer);

	if (count > 0)
		log_write(pump->log, buffer, (size_t)count);
	else if (!count)
		loop_close_source(pump->loop, &pump->source);
	return count > 0;
}

static void pump_ready(struct source *source)
{
	pump_some(container_of(source, struct pump, source));
}

/* Take what is in the pipe now and close it. A process that outlived the child may write on: its output ends here. */
static void pump_finish(struct pump *pump)
{
	int left = 0;

	if (pump->source.fd < 0)
		return;
	ioctl(pump->source.fd, FIONREAD, &left);
	for (; left > 0 && pump_some(pump); left -= 64 * 1024)
		;
	loop_close_source(pump->loop, &pump->source);
}

/* Open the pump's pipe and return its writing end. */
static int pump_open(struct pump *pump)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	pump->source.fd = ends[0];
	pump->source.ready = pump_ready;
	if (fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0 || loop_add(pump->loop, &pump->source) < 0) {
		close(ends[0]);
		close(ends[1]);
		pump->source.fd = -1;
		return -1;
	}
	return ends[1];
}

/* Close the descriptors kept for restarts. Whoever waits for the other end of one learns at once that it is over. */
static void release_fds(struct child *child)
{
	for (unsigned i = 0; i < FDS_MAX; i++)
		if (child->fds[i] >= 0)
			close(take_fd(&child->fds[i]));
}

static void child_free(struct child *child)
{
	release_fds(child);
	log_close(child->out.log);
	log_close(child->err.log);
	free(child->packet);
	free(child->request);
	free(child);
}

/* Start the child's program: the first time or again. */
static bool child_start(struct child *child, struct refusal *why)
{
	struct launch launch = {.request = child->request, .fds = child->fds, .files = child->all->files};
	AUTO_CLOSE int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	AUTO_CLOSE int out = -1;
	AUTO_CLOSE int err = -1;

	if (null < 0)
		return refuse(why, errno, "cannot open /dev/null: %s", strerror(errno));
	if ((child->out.log && (out = pump_open(&child->out)) < 0) ||
	    (child->err.log && child->err.log != child->out.log && (err = pump_open(&child->err)) < 0)) {
		refuse(why, errno, "cannot make a pipe for the output: %s", strerror(errno));
		goto fail;
	}
	launch.out = out >= 0 ? out : null;
	/* One log for both is one pipe for both: the order of the lines is kept. */
	launch.err = err >= 0 ? err : child->err.log ? out : null;
	child->pid = spawn(&launch, why);
	if (child->pid < 0)
		goto fail;
	child->state = CHILD_RUNNING;
	child->started = now_ms();
	return true;
fail:
	loop_close_source(child->all->loop, &child->out.source);
	loop_close_source(child->all->loop, &child->err.source);
	child->pid = 0;
	return false;
}

static bool wants_restart(struct child *child)
{
	const struct request *request = child->request;
	bool clean = child->ended == CHILD_EXITED && !child->code;

	if (child->started && now_ms() - child->started >= RESTART_STABLE_MS)
		child->in_a_row = 0;
	return !child->stopping && request->restart == RESTART_ON_FAILURE && !clean &&
	       child->in_a_row < request->restart_max;
}

/* The child ended as `ended` says, with code or signal: restart it later or leave it at that; tell. */
static void child_ended(struct child *child, enum child_state ended, int code, int signal)
{
	struct loop *loop = child->all->loop;

	timer_cancel(loop, &child->timer);
	child->ended = ended;
	child->code = code;
	child->signal = signal;
	if (wants_restart(child)) {
		int64_t delay = RESTART_DELAY_MS;

		for (unsigned i = 0; i < child->in_a_row && delay < RESTART_DELAY_MAX_MS; i++)
			delay *= 2;
		child->state = CHILD_WAITING;
		child->in_a_row++;
		timer_arm(loop, &child->timer, delay < RESTART_DELAY_MAX_MS ? delay : RESTART_DELAY_MAX_MS);
	} else {
		child->state = ended;
		release_fds(child);
	}
	child->all->ended(child->all, child, false);
}

static void timer_fired(struct timer *timer)
{
	struct child *child = container_of(timer, struct child, timer);
	struct refusal why;

	if (child->state == CHILD_RUNNING) {
		/* The group, and the child itself in case it left the group. */
		kill(-child->pid, SIGKILL);
		kill(child->pid, SIGKILL);
		return;
	}
	child->restarts++;
	child->started = 0;
	if (!child_start(child, &why))
		child_ended(child, CHILD_FAILED, why.code, 0);
}

static struct log *open_log(struct children *children, const char *path, const struct request *request,
			    struct refusal *why)
{
	struct log *log = log_open(&children->logs, path, request->log_limit);

	if (!log)
		refuse(why, errno, "cannot write log %s: %s", path, strerror(errno));
	return log;
}

/* A child that owns what it was asked for and given, so that it can be started again. */
static struct child *child_new(struct children *children, struct packet *packet)
{
	struct child *child = calloc(1, sizeof *child);
	struct refusal never;

	if (!child)
		return NULL;
	memset(child->fds, -1, sizeof child->fds);
	child->all = children;
	child->out.source.fd = child->err.source.fd = -1;
	child->out.loop = child->err.loop = children->loop;
	child->timer.fire = timer_fired;
	child->request = malloc(sizeof *child->request);
	child->packet = malloc(packet->length);
	if (!child->packet || !child->request) {
		child_free(child);
		return NULL;
	}
	memcpy(child->packet, packet->data, packet->length);
	/* Parsing is a pure function of the bytes: what it accepted once it accepts again. */
	request_parse(child->packet, packet->length, packet->fd_count, child->request, &never);
	memcpy(child->fds, packet->fds, packet->fd_count * sizeof *packet->fds);
	packet->fd_count = 0;
	return child;
}

struct child *children_spawn(struct children *children, const struct request *request, struct packet *packet,
			     struct refusal *why)
{
	struct child *child;

	if (children_find(children, request->id)) {
		refuse(why, EEXIST, "child %s exists", request->id);
		return NULL;
	}
	if (children->count == CHILDREN_MAX) {
		refuse(why, ENOSPC, "%d children are known: forget those that ended", CHILDREN_MAX);
		return NULL;
	}
	child = child_new(children, packet);
	if (!child) {
		refuse(why, ENOMEM, "out of memory");
		return NULL;
	}
	if ((request->stdout_log && !(child->out.log = open_log(children, request->stdout_log, request, why))) ||
	    (request->stderr_log && !(child->err.log = open_log(children, request->stderr_log, request, why))) ||
	    !child_start(child, why)) {
		child_free(child);
		return NULL;
	}
	if (request->restart == RESTART_NEVER)
		release_fds(child);
	TAILQ_INSERT_TAIL(&children->list, child, link);
	children->count++;
	return child;
}

void child_stop(struct child *child, int64_t grace_ms)
{
	struct loop *loop = child->all->loop;
	bool first = !child->stopping;

	child->stopping = true;
	if (child->state == CHILD_WAITING) {
		timer_cancel(loop, &child->timer);
		child->state = child->ended;
		release_fds(child);
		child->all->ended(child->all, child, true);
	} else if (child->state == CHILD_RUNNING) {
		if (first) {
			kill(child->pid, SIGTERM);
			/* A stopped process acts on SIGTERM only once it goes on. */
			kill(child->pid, SIGCONT);
		}
		if (!child->timer.armed || child->timer.at > now_ms() + grace_ms)
			timer_arm(loop, &child->timer, grace_ms);
	}
}

void children_stop(struct children *children, int64_t grace_ms)
{
	struct child *child;

	TAILQ_FOREACH (child, &children->list, link)
		if (child_live(child))
			child_stop(child, grace_ms);
}

void child_forget(struct child *child)
{
	TAILQ_REMOVE(&child->all->list, child, link);
	child->all->count--;
	child_free(child);
}

static struct child *find_running(struct children *children, pid_t pid)
{
	struct child *child;

	TAILQ_FOREACH (child, &children->list, link)
		if (child->state == CHILD_RUNNING && child->pid == pid)
			return child;
	return NULL;
}

void children_reap(struct children *children)
{
	/* Look without reaping first: while the zombie stands, its pid still names its process group. */
	for (;;) {
		siginfo_t info = {.si_pid = 0};
		struct child *child;

		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || !info.si_pid)
			return;
		child = find_running(children, info.si_pid);
		if (child) {
			kill(-child->pid, SIGKILL);
			pump_finish(&child->out);
			pump_finish(&child->err);
		}
		waitpid(info.si_pid, NULL, 0);
		/* Other processes are orphans of children that the holder adopted as their subreaper. */
		if (!child)
			continue;
		if (info.si_code == CLD_EXITED)
			child_ended(child, CHILD_EXITED, info.si_status, 0);
		else
			child_ended(child, CHILD_SIGNALED, 0, info.si_status);
	}
}
