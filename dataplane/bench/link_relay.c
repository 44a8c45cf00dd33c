/* A TCP link with a delay, for measurements: what netem gives, without netem in the kernel.
 *
 *   link-relay PORT RTT-US BYTES-PER-SECOND
 *
 * Listens on a port of 127.0.0.1, which it prints, and passes every connection's bytes on to PORT of 127.0.0.1, each half
 * of the round trip after it came. A rate other than 0 is shared by all connections, each way: bytes leave one after
 * the other, as on a wire. Ends when its standard input does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 256 << 10, WAITING_MAX = 256 << 20, EVENTS = 64 };

struct chunk {
	TAILQ_ENTRY(chunk) entry;
	int64_t due_ns;
	size_t length, sent;
	char bytes[];
};

/* One way of one connection. */
struct pipe_end {
	LIST_ENTRY(pipe_end) entry;
	int from, to;
	unsigned way;
	size_t waiting; /* bytes */
	bool ended, shut;
	TAILQ_HEAD(, chunk) chunks;
	struct pipe_end *other;
};

static LIST_HEAD(, pipe_end) pipes = LIST_HEAD_INITIALIZER(pipes);
static int64_t delay_ns, wire_free_ns[2];
static double rate;
static int epoll;

static int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void take_in(struct pipe_end *end)
{
	while (!end->ended && end->waiting < WAITING_MAX) {
		struct chunk *chunk = malloc(sizeof *chunk + CHUNK);
		ssize_t got;
		int64_t now;

		if (!chunk)
			fail("malloc");
		got = recv(end->from, chunk->bytes, CHUNK, MSG_DONTWAIT);
		if (got <= 0) {
			free(chunk);
			end->ended = !got || (errno != EAGAIN && errno != EINTR);
			return;
		}
		chunk = realloc(chunk, sizeof *chunk + (size_t)got);
		now = now_ns();
		if (rate > 0) {
			if (wire_free_ns[end->way] < now)
				wire_free_ns[end->way] = now;
			wire_free_ns[end->way] += (int64_t)((double)got * 1e9 / rate);
			now = wire_free_ns[end->way];
		}
		*chunk = (struct chunk){.due_ns = now + delay_ns, .length = (size_t)got};
		end->waiting += chunk->length;
		TAILQ_INSERT_TAIL(&end->chunks, chunk, entry);
	}
}

/* Send what is due; returns when the next is, or -1. */
static int64_t pass_on(struct pipe_end *end, int64_t now)
{
	struct chunk *chunk;

	while ((chunk = TAILQ_FIRST(&end->chunks))) {
		ssize_t sent;

		if (chunk->due_ns > now)
			return chunk->due_ns;
		sent = send(end->to, chunk->bytes + chunk->sent, chunk->length - chunk->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno == EAGAIN)
			return -1; /* epoll tells */
		if (sent > 0) {
			chunk->sent += (size_t)sent;
			end->waiting -= (size_t)sent;
		}
		if (sent < 0 || chunk->sent == chunk->length) {
			if (sent < 0)
				end->waiting -= chunk->length - chunk->sent;
			TAILQ_REMOVE(&end->chunks, chunk, entry);
			free(chunk);
		}
	}
	if (end->ended && !end->shut) {
		end->shut = true;
		shutdown(end->to, SHUT_WR);
	}
	return -1;
}

static void watch(int fd, struct pipe_end *end)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = end};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		fail("epoll_ctl");
}

static void join(int near, uint16_t port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct pipe_end *ends[2];
	int far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	if (far < 0 || connect(far, (struct sockaddr *)&address, sizeof address) < 0) {
		close(far);
		close(near);
		return;
	}
	setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	for (unsigned i = 0; i < 2; i++) {
		ends[i] = calloc(1, sizeof *ends[i]);
		if (!ends[i])
			fail("calloc");
		ends[i]->from = i ? far : near;
		ends[i]->to = i ? near : far;
		ends[i]->way = i;
		TAILQ_INIT(&ends[i]->chunks);
		LIST_INSERT_HEAD(&pipes, ends[i], entry);
	}
	ends[0]->other = ends[1];
	ends[1]->other = ends[0];
	watch(near, ends[0]);
	watch(far, ends[1]);
}

static void drop_ended(void)
{
	struct pipe_end *end = LIST_FIRST(&pipes), *next;

	for (; end; end = next) {
		next = LIST_NEXT(end, entry);
		if (!end->shut || !end->other->shut)
			continue;
		if (next == end->other)
			next = LIST_NEXT(next, entry);
		close(end->from);
		close(end->to);
		LIST_REMOVE(end->other, entry);
		LIST_REMOVE(end, entry);
		free(end->other);
		free(end);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t length = sizeof address;
	struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint16_t port;

	if (argc != 4)
		return 2;
	port = (uint16_t)atoi(argv[1]);
	delay_ns = atoll(argv[2]) * 500;
	rate = atof(argv[3]);
	prctl(PR_SET_TIMERSLACK, 1);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0 ||
	    getsockname(listener, (struct sockaddr *)&address, &length) < 0)
		fail("listen");
	event.data.ptr = &listener;
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	event.data.ptr = NULL;
	epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	printf("%u\n", ntohs(address.sin_port));
	fflush(stdout);
	for (;;) {
		int64_t now = now_ns(), next = -1;
		struct timespec wait;
		struct pipe_end *end;
		char ignored[64];
		int count;

		LIST_FOREACH(end, &pipes, entry)
		{
			int64_t due;

			take_in(end);
			due = pass_on(end, now);
			if (due >= 0 && (next < 0 || due < next))
				next = due;
		}
		drop_ended();
		now = now_ns();
		next = next < 0 ? 1000000000 : next > now ? next - now : 0;
		wait = (struct timespec){next / 1000000000, next % 1000000000};
		count = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
		for (int i = 0; i < count; i++) {
			if (!events[i].data.ptr && read(STDIN_FILENO, ignored, sizeof ignored) <= 0)
				return 0;
			if (events[i].data.ptr == &listener)
				join(accept4(listener, NULL, NULL, SOCK_CLOEXEC), port);
		}
	}
}
