#include "verbs.h"

#include <signal.h>
#include <string.h>

#include "cleanup.h"

static struct child *need_child(struct holder *holder, const struct request *request, struct refusal *why)
{
	struct child *child = children_find(&holder->children, request->id);

	if (!child)
		refuse(why, ENOENT, "no child %s", request->id);
	return child;
}

static struct kept *need_kept(struct holder *holder, const struct request *request, struct refusal *why)
{
	struct kept *kept = store_find(&holder->store, request->name);

	if (!kept)
		refuse(why, ENOENT, "no descriptor %s is kept", request->name);
	return kept;
}

static void describe(struct reply *reply, const struct child *child)
{
	reply_field(reply, "child=%s %d %s %u %d %d %llu", child->request->id, child->pid,
		    child_state_name(child->state), child->restarts, child->code, child->signal,
		    (unsigned long long)child_dropped(child));
}

static bool do_hello(struct holder *holder, struct call *call)
{
	if (call->request->version != 1)
		return refuse(call->why, EPROTONOSUPPORT, "only version 1 is spoken here");
	reply_field(call->reply, "version=1");
	reply_field(call->reply, "pid=%d", getpid());
	reply_field(call->reply, "name=%s", holder->name);
	return true;
}

static bool do_spawn(struct holder *holder, struct call *call)
{
	struct child *child;

	if (holder->closing)
		return refuse(call->why, ESHUTDOWN, "the holder is ending");
	child = children_spawn(&holder->children, call->request, call->packet, call->why);
	if (!child)
		return false;
	reply_field(call->reply, "pid=%d", child->pid);
	return true;
}

static bool do_list(struct holder *holder, struct call *call)
{
	const struct child *child;

	TAILQ_FOREACH (child, &holder->children.list, link)
		describe(call->reply, child);
	return true;
}

static bool do_signal(struct holder *holder, struct call *call)
{
	struct child *child = need_child(holder, call->request, call->why);

	if (!child)
		return false;
	if (child->state != CHILD_RUNNING)
		return refuse(call->why, ESRCH, "child %s does not run", call->request->id);
	if (kill(child->pid, (int)call->request->sig) < 0)
		return refuse(call->why, errno, "cannot signal child %s: %s", call->request->id, strerror(errno));
	return true;
}

static bool do_stop(struct holder *holder, struct call *call)
{
	struct child *child = need_child(holder, call->request, call->why);

	if (!child)
		return false;
	child_stop(child, (int64_t)call->request->grace_ms);
	describe(call->reply, child);
	return true;
}

static bool do_forget(struct holder *holder, struct call *call)
{
	struct child *child = need_child(holder, call->request, call->why);

	if (!child)
		return false;
	if (child_live(child))
		return refuse(call->why, EBUSY, "child %s has not ended", call->request->id);
	child_forget(child);
	return true;
}

static bool do_keep(struct holder *holder, struct call *call)
{
	int fd = take_fd(&call->packet->fds[0]);

	call->packet->fd_count = 0;
	return store_keep(&holder->store, call->request->name, fd, call->why);
}

static bool do_fetch(struct holder *holder, struct call *call)
{
	const struct kept *kept = need_kept(holder, call->request, call->why);

	if (!kept)
		return false;
	call->answer_fd = kept->fd;
	return true;
}

static bool do_drop(struct holder *holder, struct call *call)
{
	struct kept *kept = need_kept(holder, call->request, call->why);

	if (!kept)
		return false;
	store_drop(&holder->store, kept);
	return true;
}

static bool do_names(struct holder *holder, struct call *call)
{
	const struct kept *kept;

	TAILQ_FOREACH (kept, &holder->store.list, link)
		reply_field(call->reply, "name=%s", kept->name);
	return true;
}

static bool do_watch(struct holder *holder, struct call *call)
{
	(void)holder;
	*call->watching = true;
	return true;
}

static bool do_shutdown(struct holder *holder, struct call *call)
{
	holder_shutdown(holder, (int64_t)call->request->grace_ms);
	return true;
}

static bool (*const handlers[VERB_COUNT])(struct holder *, struct call *) = {
	[VERB_HELLO] = do_hello,   [VERB_SPAWN] = do_spawn,   [VERB_LIST] = do_list,   [VERB_SIGNAL] = do_signal,
	[VERB_STOP] = do_stop,     [VERB_FORGET] = do_forget, [VERB_KEEP] = do_keep,   [VERB_FETCH] = do_fetch,
	[VERB_DROP] = do_drop,     [VERB_NAMES] = do_names,   [VERB_WATCH] = do_watch, [VERB_SHUTDOWN] = do_shutdown,
};

bool verb_run(struct holder *holder, struct call *call)
{
	return handlers[call->request->verb](holder, call);
}
