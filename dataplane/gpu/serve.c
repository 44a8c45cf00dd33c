#include "serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"
#include "mux.h"
#include "watch.h"

enum {
	GREETING_MAX = 8,	 /* connections that have not proven the key yet */
	GREETING_MS = 5000,
	LISTENER = 1000,	 /* tags; a stream's is its number, a connection's LINK and its slot */
	LINK = 2000,
	ROUNDS = 16, /* reads of one source before the others get their turn */
};

struct link {
	struct watch watch;
	struct tls tls;
	int64_t until; /* milliseconds; in the handshake */
};

struct server {
	int epoll;
	struct watch listener;
	const struct key *key;
	const char *const *services;
	int silence;
	struct link links[GREETING_MAX + 1];
	struct link *current; /* the one that proved the key last */
	struct mux mux;
	struct watch streams[STREAMS + 1];
	uint64_t refused;
};

static struct server *server_of(struct mux *mux)
{
	return container_of(mux, struct server, mux);
}

/* Streams */

static void close_watch(struct watch *watch)
{
	if (watch->fd < 0)
		return;
	watch_for(watch, 0);
	close(watch->fd);
	watch->fd = -1;
}

static bool opened(struct mux *mux, unsigned number)
{
	struct server *server = server_of(mux);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const char *path = server->services[mux->streams[number].service];
	int fd = path ? socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0) : -1;

	if (!path)
		return false;
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
		fprintf(stderr, "vmcoal-gpu: the GPU server does not take a stream: %s\n", strerror(errno));
		if (fd >= 0)
			close(fd);
		return false;
	}
	server->streams[number] = (struct watch){.epoll = server->epoll, .fd = fd, .tag = number};
	return true;
}

static void gone(struct mux *mux, unsigned number)
{
	close_watch(&server_of(mux)->streams[number]);
}

static void end_stream(struct server *server, unsigned number)
{
	close_watch(&server->streams[number]);
	mux_end(&server->mux, number);
}

static void arrived(struct mux *mux, unsigned number)
{
	struct server *server = server_of(mux);
	struct stream *stream = &mux->streams[number];
	ssize_t count;

	while (bytes_used(&stream->arrived)) {
		count = send(server->streams[number].fd, bytes_front(&stream->arrived), bytes_used(&stream->arrived),
			     MSG_NOSIGNAL);
		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (count < 0) {
			end_stream(server, number);
			return;
		}
		mux_taken(mux, number, (uint32_t)count);
	}
	if (stream->ended_there)
		end_stream(server, number);
}

static size_t give(struct mux *mux, unsigned number, const uint8_t *data, size_t size)
{
	struct server *server = server_of(mux);
	size_t done = 0;

	while (done < size) {
		ssize_t count = send(server->streams[number].fd, data + done, size - done, MSG_NOSIGNAL);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno != EAGAIN)
			end_stream(server, number);
		if (count < 0)
			break;
		done += (size_t)count;
	}
	return done;
}

static const struct mux_user user = {.opened = opened, .give = give, .arrived = arrived, .gone = gone};

static void read_stream(struct server *server, unsigned number)
{
	uint32_t most;

	for (int round = 0; round < ROUNDS && (most = mux_may_send(&server->mux, number)); round++) {
		uint8_t *room = mux_room(&server->mux, most);
		ssize_t count = room ? recv(server->streams[number].fd, room, most, 0) : 0;

		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (count <= 0) {
			end_stream(server, number);
			return;
		}
		mux_sent(&server->mux, number, (uint32_t)count);
		if ((uint32_t)count < most)
			return;
	}
}

/* Connections */

static void close_link(struct server *server, struct link *link, const char *why)
{
	if (link->watch.fd < 0)
		return;
	if (link == server->current) {
		fprintf(stderr, "vmcoal-gpu: the borrower is gone: %s\n", why);
		server->current = NULL;
		mux_reset(&server->mux);
	}
	tls_close(&link->tls);
	close_watch(&link->watch);
}

static void accept_link(struct server *server)
{
	int fd = accept4(server->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct link *link = NULL;

	if (fd < 0)
		return;
	for (int i = 0; i <= GREETING_MAX; i++)
		if (server->links[i].watch.fd < 0)
			link = &server->links[i];
	if (!link || !tune_socket(fd, server->silence) || !tls_open(&link->tls, fd, true, server->key)) {
		close(fd);
		return;
	}
	link->watch = (struct watch){
		.epoll = server->epoll, .fd = fd, .tag = LINK + (uint64_t)(link - server->links)};
	link->until = now_ms() + GREETING_MS;
}

static void greet(struct server *server, struct link *link)
{
	const char *why = NULL;
	int done = tls_handshake(&link->tls, &why);

	if (done < 0) {
		server->refused++;
		fprintf(stderr, "vmcoal-gpu: refused a connection (%llu): %s\n", (unsigned long long)server->refused, why);
		close_link(server, link, why);
		return;
	}
	if (!done)
		return;
	/* Whoever has the key is the borrower: the connection it had is lost, or it is ending it. */
	if (server->current)
		close_link(server, server->current, "it connected anew");
	server->current = link;
}

/* Returns whether something went. */
static bool flush(struct server *server, const char **why)
{
	struct bytes *out = &server->mux.out;
	ssize_t count = tls_write(&server->current->tls, bytes_front(out), bytes_used(out), why);

	if (count > 0)
		bytes_take(out, (size_t)count);
	return count > 0;
}

/* Take what has come, as far as there is room; returns whether there was something. */
static bool take(struct server *server, const char **why)
{
	struct bytes *in = &server->mux.in;
	bool moved = false;

	for (;;) {
		size_t size = bytes_left(in) < RECORD ? bytes_left(in) : RECORD;
		uint8_t *room = size ? bytes_room(in, size) : NULL;
		ssize_t count = room ? tls_read(&server->current->tls, room, size, why) : 0;

		if (count <= 0)
			return moved;
		bytes_added(in, (size_t)count);
		moved = true;
	}
}

/* Do for the borrower what can be done now. Bytes that GnuTLS has taken in already raise no event of their own. */
static void progress(struct server *server)
{
	struct mux *mux = &server->mux;
	const char *why = NULL;
	bool more = server->current;

	while (more) {
		more = take(server, &why);
		if (!mux_understand(mux)) {
			server->refused++;
			fprintf(stderr, "vmcoal-gpu: refused what came (%llu)\n", (unsigned long long)server->refused);
			why = mux->why;
		} else if (!why) {
			/* Frames wait where there was no room for what answers them, and no event will tell of room. */
			more |= flush(server, &why) && bytes_used(&mux->in) >= FRAME_HEADER;
		}
		more = more && !why;
	}
	if (why)
		close_link(server, server->current, why);
}

/* The loop */

static void watch_all(struct server *server)
{
	bool room = false;

	for (int i = 0; i <= GREETING_MAX; i++) {
		struct link *link = &server->links[i];
		uint32_t events = EPOLLIN;

		if (link->watch.fd < 0) {
			room = true;
			continue;
		}
		if (link == server->current) {
			if (bytes_used(&server->mux.out) || tls_wants_write(&link->tls))
				events |= EPOLLOUT;
			if (!bytes_left(&server->mux.in))
				events &= ~(uint32_t)EPOLLIN;
		} else if (tls_wants_write(&link->tls)) {
			events = EPOLLOUT;
		}
		watch_for(&link->watch, events);
	}
	watch_for(&server->listener, room ? EPOLLIN : 0);
	for (unsigned i = 1; i <= STREAMS; i++)
		if (server->streams[i].fd >= 0)
			watch_for(&server->streams[i],
				  (mux_may_send(&server->mux, i) ? EPOLLIN : 0U) |
					  (bytes_used(&server->mux.streams[i].arrived) ? EPOLLOUT : 0U));
}

static int expire(struct server *server)
{
	int64_t now = now_ms(), next = INT64_MAX;

	for (int i = 0; i <= GREETING_MAX; i++) {
		struct link *link = &server->links[i];

		if (link->watch.fd < 0 || link == server->current)
			continue;
		if (link->until <= now)
			close_link(server, link, "it does not prove the key");
		else if (link->until < next)
			next = link->until;
	}
	return next == INT64_MAX ? -1 : (int)(next - now);
}

static void turn(struct server *server, uint64_t tag, uint32_t events)
{
	if (tag == LISTENER) {
		accept_link(server);
	} else if (tag >= LINK) {
		struct link *link = &server->links[tag - LINK];

		if (link != server->current && link->watch.fd >= 0)
			greet(server, link);
	} else if (server->streams[tag].fd >= 0) {
		if (events & EPOLLOUT)
			arrived(&server->mux, (unsigned)tag);
		if (server->streams[tag].fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
			read_stream(server, (unsigned)tag);
	}
	progress(server);
}

int serve(int listener, const struct key *key, const char *const *services, int silence)
{
	struct server *server = calloc(1, sizeof *server);
	struct epoll_event event;

	if (!server)
		return -1;
	server->epoll = epoll_create1(EPOLL_CLOEXEC);
	server->key = key;
	server->services = services;
	server->silence = silence;
	server->listener = (struct watch){.epoll = server->epoll, .fd = listener, .tag = LISTENER};
	for (int i = 0; i <= GREETING_MAX; i++)
		server->links[i].watch.fd = -1;
	for (unsigned i = 1; i <= STREAMS; i++)
		server->streams[i].fd = -1;
	mux_init(&server->mux, &user);
	for (;;) {
		int timeout = expire(server), count;

		watch_all(server);
		count = epoll_wait(server->epoll, &event, 1, timeout);
		if (count < 0 && errno != EINTR)
			break;
		if (count > 0)
			turn(server, event.data.u64, event.events);
	}
	close(server->epoll);
	mux_free(&server->mux);
	free(server);
	return -1;
}
