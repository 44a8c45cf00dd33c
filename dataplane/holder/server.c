#include "server.h"

#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <fcntl.h>
#include <signal.h>

#include "cleanup.h"

struct connection {
	struct source source;
	struct holder *holder;
	bool watching;
	LIST_ENTRY(connection) link;
};

static void disconnect(struct connection *connection)
{
	struct holder *holder = connection->holder;

	LIST_REMOVE(connection, link);
	holder->connection_count--;
	loop_close_source(&holder->loop, &connection->source);
	free(connection);
}

/* Send one packet, with a descriptor unless `fd` is -1. False: the peer is gone or does not read. */
static bool send_packet(int socket, const struct reply *reply, int fd)
{
	struct iovec iov = {(void *)reply->data, reply->length};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = control.space;
		message.msg_controllen = sizeof control.space;
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
	}
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)reply->length;
}

void server_broadcast(struct holder *holder, const struct reply *event)
{
	struct connection *connection;

	LIST_FOREACH (connection, &holder->connections, link)
		if (connection->watching && !send_packet(connection->source.fd, event, -1)) {
			/* Freed later, by the end that it now reads: this may be within a request of its own. */
			connection->watching = false;
			shutdown(connection->source.fd, SHUT_RDWR);
		}
}

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

/* A request with where it came from and what is to be answered. */
struct call {
	struct connection *connection;
	const struct request *request;
	const char *packet;
	size_t length;
	const int *fds;
	struct reply *reply;
	int answer_fd;
	struct refusal *why;
};

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
	const struct request *request = call->request;
	struct child *child;

	if (holder->closing) {
		for (unsigned i = 0; i < request->targetc; i++)
			close(call->fds[i]);
		return refuse(call->why, ESHUTDOWN, "the holder is ending");
	}
	child = children_spawn(&holder->children, request, call->packet, call->length, call->fds, call->why);
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
	return store_keep(&holder->store, call->request->name, call->fds[0], call->why);
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
	call->connection->watching = true;
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

/* Collect the descriptors of a received message. False: there were more than fit, and all are closed. */
static bool collect_fds(struct msghdr *message, int *fds, size_t *count)
{
	*count = 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		size_t bytes = header->cmsg_len - CMSG_LEN(0);

		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(fds + *count, CMSG_DATA(header), bytes);
		*count += bytes / sizeof(int);
	}
	if (!(message->msg_flags & MSG_CTRUNC))
		return true;
	while (*count)
		close(fds[--*count]);
	return false;
}

static void answer(struct connection *connection, char *packet, size_t length, struct msghdr *message)
{
	static struct request request;
	static struct reply reply;
	struct refusal why;
	struct call call = {.connection = connection, .request = &request, .packet = packet, .length = length,
			    .reply = &reply, .answer_fd = -1, .why = &why};
	int fds[FDS_MAX];
	size_t count;
	bool ok;

	call.fds = fds;
	reply_begin(&reply, "ok");
	ok = collect_fds(message, fds, &count);
	if (!ok) {
		refuse(&why, E2BIG, "more than %d descriptors, or no room for them", FDS_MAX);
	} else {
		if (message->msg_flags & MSG_TRUNC)
			ok = refuse(&why, EMSGSIZE, "the packet is longer than %d bytes", PACKET_MAX);
		else
			ok = request_parse(packet, length, count, &request, &why);
		if (ok)
			ok = handlers[request.verb](connection->holder, &call);
		else
			while (count)
				close(fds[--count]);
	}
	if (ok && reply.overflow)
		ok = refuse(&why, EMSGSIZE, "the answer is longer than %d bytes", PACKET_MAX);
	if (!ok)
		reply_refusal(&reply, &why);
	if (!send_packet(connection->source.fd, &reply, ok ? call.answer_fd : -1))
		disconnect(connection);
}

static void connection_ready(struct source *source)
{
	static char packet[PACKET_MAX];
	struct connection *connection = container_of(source, struct connection, source);
	struct iovec iov = {packet, sizeof packet};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control;
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
	ssize_t length = recvmsg(source->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (length < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	/* An empty packet cannot be told from the end. */
	if (length <= 0) {
		int fds[FDS_MAX];
		size_t count;

		if (!length && collect_fds(&message, fds, &count))
			while (count)
				close(fds[--count]);
		disconnect(connection);
		return;
	}
	answer(connection, packet, (size_t)length, &message);
}

static bool welcome(int fd)
{
	struct ucred peer;
	socklen_t length = sizeof peer;

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) && (!peer.uid || peer.uid == geteuid());
}

static void listener_ready(struct source *source)
{
	struct holder *holder = container_of(source, struct holder, listener);
	AUTO_CLOSE int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct connection *connection;

	if (fd < 0 && (errno == EMFILE || errno == ENFILE) && holder->spare >= 0) {
		/* Out of descriptors: hang up on the peer, or the listener would be ready for ever. */
		close(take_fd(&holder->spare));
		fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			close(take_fd(&fd));
		holder->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0 || holder->connection_count == CONNECTIONS_MAX || !welcome(fd))
		return;
	connection = calloc(1, sizeof *connection);
	if (!connection)
		return;
	connection->holder = holder;
	connection->source.fd = fd;
	connection->source.ready = connection_ready;
	if (loop_add(&holder->loop, &connection->source) < 0) {
		free(connection);
		return;
	}
	take_fd(&fd);
	LIST_INSERT_HEAD(&holder->connections, connection, link);
	holder->connection_count++;
}

/* One holder a folder: the lock on the socket's folder, kept for life, lets a stale socket be replaced without a race. */
static int lock_folder(const char *path)
{
	char folder[sizeof((struct sockaddr_un *)0)->sun_path];
	AUTO_CLOSE int fd = -1;

	snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
	fd = open(*folder ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "vmcoal-holder: cannot open folder %s: %s\n", folder, strerror(errno));
		return EXIT_FAILURE;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		fprintf(stderr, "vmcoal-holder: another holder serves folder %s\n", folder);
		return EXIT_TAKEN;
	}
	take_fd(&fd);
	return 0;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask;
	int bound;

	strcpy(address.sun_path, path);
	mask = umask(0177);
	bound = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&address, sizeof address);
	umask(mask);
	return bound < 0 || listen(fd, 128) < 0 ? -1 : take_fd(&fd);
}

int server_open(struct holder *holder, const char *path)
{
	struct stat old;
	int taken;

	if (path[0] != '/' || strlen(path) >= sizeof((struct sockaddr_un *)0)->sun_path) {
		fprintf(stderr, "vmcoal-holder: the socket must be an absolute path of at most %zu bytes\n",
			sizeof((struct sockaddr_un *)0)->sun_path - 1);
		return EXIT_FAILURE;
	}
	taken = lock_folder(path);
	if (taken)
		return taken;
	if (!lstat(path, &old) && !S_ISSOCK(old.st_mode)) {
		fprintf(stderr, "vmcoal-holder: %s exists and is not a socket\n", path);
		return EXIT_FAILURE;
	}
	unlink(path);
	holder->listener.ready = listener_ready;
	holder->listener.fd = listen_at(path);
	if (holder->listener.fd < 0 || loop_add(&holder->loop, &holder->listener) < 0) {
		fprintf(stderr, "vmcoal-holder: cannot listen at %s: %s\n", path, strerror(errno));
		return EXIT_FAILURE;
	}
	holder->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return 0;
}

void server_close(struct holder *holder)
{
	struct connection *connection;

	loop_close_source(&holder->loop, &holder->listener);
	while ((connection = LIST_FIRST(&holder->connections)))
		disconnect(connection);
}
