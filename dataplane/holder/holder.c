#include "holder.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server.h"

static struct child *live_main(struct holder *holder)
{
	struct child *child;

	TAILQ_FOREACH (child, &holder->children.list, link)
		if (child->request->main && child_live(child))
			return child;
	return NULL;
}

void holder_shutdown(struct holder *holder, int64_t grace_ms)
{
	struct child *main = live_main(holder);

	holder->closing = true;
	holder->closing_grace_ms = grace_ms;
	if (main)
		child_stop(main, grace_ms);
	else
		children_stop(&holder->children, grace_ms);
}

static void record_exit(struct holder *holder, const struct child *child)
{
	char line[256], date[32];
	struct timespec now;
	struct tm utc;
	int length;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
	length = snprintf(line, sizeof line, "%s.%03dZ %s %d %s %d\n", date, (int)(now.tv_nsec / 1000000),
			  child->request->id, child->pid, child_state_name(child->ended),
			  child->ended == CHILD_SIGNALED ? child->signal : child->code);
	log_write(holder->exits, line, (size_t)length);
}

void holder_child_ended(struct children *children, const struct child *child, bool cancelled)
{
	struct holder *holder = container_of(children, struct holder, children);
	struct reply event;

	if (!cancelled)
		record_exit(holder, child);
	reply_begin(&event, "event");
	reply_field(&event, "type=exit");
	reply_field(&event, "id=%s", child->request->id);
	reply_field(&event, "pid=%d", child->pid);
	reply_field(&event, "state=%s", child_state_name(child->ended));
	reply_field(&event, "code=%d", child->code);
	reply_field(&event, "signal=%d", child->signal);
	reply_field(&event, "restarting=%d", child->state == CHILD_WAITING);
	server_broadcast(holder, &event);

	if (child->request->main && !child_live(child)) {
		int64_t grace = holder->closing ? holder->closing_grace_ms : CLOSING_GRACE_MS;

		holder->closing = true;
		children_stop(children, grace);
	}
}

static bool idle(const struct holder *holder)
{
	return !children_live(&holder->children) && !holder->store.count && !holder->connection_count;
}

void holder_idle_fired(struct timer *timer)
{
	struct holder *holder = container_of(timer, struct holder, idle);

	/* A connection may have come in the same turn of the loop. */
	holder->done |= idle(holder);
}

void holder_review(struct holder *holder)
{
	if (holder->closing && !children_live(&holder->children))
		holder->done = true;
	if (!idle(holder))
		timer_cancel(&holder->loop, &holder->idle);
	else if (!holder->idle.armed)
		timer_arm(&holder->loop, &holder->idle, holder->idle_ms);
}
