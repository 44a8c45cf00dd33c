#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

enum {
	PORT = 1000, /* tags; a line's is its number, a listener's LISTENER and its service */
	LISTENER = 2000,
	EVENTS = 16,
	ROUNDS = 8,			 /* reads of one program before the others get their turn */
	PAGE = 4096,			 /* a guest's port gives no more at a time */
	TELL = WINDOW / 8,		 /* credit is given back in pieces of this */
	OUT_ROOM = 512 * 1024,		 /* from here on programs are not read */
	SPARE = 8 * 1024,		 /* and this is for credits and ends: no stream has more than a few due */
	HELLO_LENGTH = sizeof HELLO_TEXT - 1 + HELLO_NONCE,
};

static bool end(struct relay *relay, const char *why)
{
	relay->why = why;
	return false;
}

static void close_watch(struct watch *watch)
{
	if (watch->fd < 0)
		return;
	watch_for(watch, 0);
	close(watch->fd);
	watch->fd = -1;
}

bool relay_open(struct relay *relay, int port, const int *listeners)
{
	memset(relay, 0, sizeof *relay);
	relay->epoll = epoll_create1(EPOLL_CLOEXEC);
	relay->port = (struct watch){.epoll = relay->epoll, .fd = port, .tag = PORT};
	for (unsigned i = 0; i < SERVICES_MAX; i++)
		relay->listeners[i] = (struct watch){.epoll = relay->epoll, .fd = listeners[i], .tag = LISTENER + i};
	for (unsigned i = 1; i <= STREAMS; i++) {
		relay->lines[i].watch.fd = -1;
		bytes_init(&relay->lines[i].queue, WINDOW);
	}
	bytes_init(&relay->out, OUT_ROOM + SPARE + FRAME_HEADER + FRAME_MAX);
	return relay->epoll >= 0;
}

void relay_close(struct relay *relay)
{
	for (unsigned i = 1; i <= STREAMS; i++) {
		close_watch(&relay->lines[i].watch);
		bytes_free(&relay->lines[i].queue);
	}
	for (unsigned i = 0; i < SERVICES_MAX; i++)
		close_watch(&relay->listeners[i]);
	close_watch(&relay->port);
	bytes_free(&relay->out);
	close(relay->epoll);
}

/* The port */

static bool read_port(struct relay *relay)
{
	ssize_t count;

	do {
		count = read(relay->port.fd, relay->in + relay->have, RELAY_IN - relay->have);
		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (count < 0 && errno != ECONNRESET)
			return end(relay, "the port broke");
		if (count <= 0)
			return end(relay, "the host closed the port");
		relay->have += (size_t)count;
	} while (count >= PAGE && relay->have < RELAY_IN);
	return true;
}

static bool write_port(struct relay *relay)
{
	while (bytes_used(&relay->out)) {
		ssize_t count = write(relay->port.fd, bytes_front(&relay->out), bytes_used(&relay->out));

		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (count < 0 && errno != EPIPE && errno != ECONNRESET)
			return end(relay, "the port broke");
		if (count <= 0)
			return end(relay, "the host closed the port");
		bytes_take(&relay->out, (size_t)count);
	}
	return true;
}

static bool send_frame(struct relay *relay, enum frame_type type, unsigned number, const void *payload, uint32_t length)
{
	uint8_t *room = bytes_room(&relay->out, FRAME_HEADER + (size_t)length);

	if (!room)
		return end(relay, "the lender does not take what it is told");
	frame_header(room, type, number, length);
	if (length)
		memcpy(room + FRAME_HEADER, payload, length);
	bytes_added(&relay->out, FRAME_HEADER + (size_t)length);
	return true;
}

bool relay_greet(struct relay *relay, int ms)
{
	uint8_t hello[FRAME_HEADER + HELLO_LENGTH], *found;
	int64_t until = now_ms() + ms;

	frame_header(hello, FRAME_HELLO, 0, HELLO_LENGTH);
	memcpy(hello + FRAME_HEADER, HELLO_TEXT, sizeof HELLO_TEXT - 1);
	if (getrandom(hello + sizeof hello - HELLO_NONCE, HELLO_NONCE, 0) != HELLO_NONCE ||
	    !bytes_add(&relay->out, hello, sizeof hello))
		return end(relay, "the guest has no random numbers");
	for (;;) {
		int64_t left = until - now_ms();
		struct pollfd wait = {.fd = relay->port.fd,
				      .events = (short)(POLLIN | (bytes_used(&relay->out) ? POLLOUT : 0))};
		size_t drop;

		if (left <= 0)
			return end(relay, "the lender does not answer");
		if (poll(&wait, 1, (int)left) <= 0)
			continue;
		if (!write_port(relay) || !read_port(relay))
			return false;
		found = memmem(relay->in, relay->have, hello, sizeof hello);
		if (found)
			drop = (size_t)(found - relay->in) + sizeof hello;
		else
			drop = relay->have > sizeof hello ? relay->have - sizeof hello : 0;
		relay->have -= drop;
		memmove(relay->in, relay->in + drop, relay->have);
		if (found)
			return true;
	}
}

/* The lines */

static void settle(struct relay *relay, struct line *line)
{
	if (line->watch.fd >= 0 || !line->ended_there)
		return;
	bytes_free(&line->queue);
	line->open = false;
	relay->lines_open--;
}

/* Close a program's connection; its number is free again once both ends have said so. */
static bool close_line(struct relay *relay, struct line *line)
{
	if (line->watch.fd < 0)
		return true;
	close_watch(&line->watch);
	bytes_free(&line->queue);
	if (!send_frame(relay, FRAME_CLOSE, (unsigned)(line - relay->lines), NULL, 0))
		return false;
	settle(relay, line);
	return true;
}

static bool accept_line(struct relay *relay, unsigned service)
{
	int fd = accept4(relay->listeners[service].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	uint8_t byte = (uint8_t)service;
	unsigned number = 1;

	if (fd < 0)
		return true;
	while (number <= STREAMS && relay->lines[number].open)
		number++;
	if (number > STREAMS) {
		close(fd);
		return true;
	}
	relay->lines[number] = (struct line){
		.watch = {.epoll = relay->epoll, .fd = fd, .tag = number},
		.open = true,
		.room = WINDOW,
		.may_come = WINDOW,
		.queue.limit = WINDOW,
	};
	relay->lines_open++;
	return send_frame(relay, FRAME_OPEN, number, &byte, 1);
}

/* How much of a line may be read now; behind it is room in `out` for its frame. */
static uint32_t may_take(const struct relay *relay, const struct line *line)
{
	if (bytes_used(&relay->out) >= OUT_ROOM)
		return 0;
	return line->room < FRAME_MAX ? line->room : FRAME_MAX;
}

/* Take what a program sends, as far as the lender and the port have room. */
static bool take(struct relay *relay, struct line *line)
{
	uint32_t most;

	for (int round = 0; round < ROUNDS && (most = may_take(relay, line)); round++) {
		uint8_t *room = bytes_room(&relay->out, FRAME_HEADER + (size_t)most);
		ssize_t count = room ? recv(line->watch.fd, room + FRAME_HEADER, most, 0) : 0;

		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (count <= 0)
			return close_line(relay, line);
		frame_header(room, FRAME_DATA, (unsigned)(line - relay->lines), (uint32_t)count);
		bytes_added(&relay->out, FRAME_HEADER + (size_t)count);
		line->room -= (uint32_t)count;
		if ((uint32_t)count < most)
			return true;
	}
	return true;
}

/* The program took so much: tell the lender, now and then. */
static bool taken(struct relay *relay, struct line *line, uint32_t count)
{
	uint8_t payload[4];

	line->taken += count;
	if (line->taken < TELL || line->ended_there)
		return true;
	frame_put_number(payload, line->taken);
	line->may_come += line->taken;
	line->taken = 0;
	return send_frame(relay, FRAME_CREDIT, (unsigned)(line - relay->lines), payload, sizeof payload);
}

/* Give a program `size` bytes; what it does not take waits in its queue. */
static bool give(struct relay *relay, struct line *line, const uint8_t *data, size_t size)
{
	size_t done = 0;

	while (line->watch.fd >= 0 && !bytes_used(&line->queue) && done < size) {
		ssize_t count = send(line->watch.fd, data + done, size - done, MSG_NOSIGNAL);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN)
			break;
		if (count < 0)
			return close_line(relay, line);
		done += (size_t)count;
		if (!taken(relay, line, (uint32_t)count))
			return false;
	}
	if (line->watch.fd < 0 || bytes_add(&line->queue, data + done, size - done))
		return true;
	return end(relay, "there is no memory");
}

static bool give_queued(struct relay *relay, struct line *line)
{
	while (bytes_used(&line->queue)) {
		ssize_t count = send(line->watch.fd, bytes_front(&line->queue), bytes_used(&line->queue), MSG_NOSIGNAL);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN)
			return true;
		if (count < 0)
			return close_line(relay, line);
		bytes_take(&line->queue, (size_t)count);
		if (!taken(relay, line, (uint32_t)count))
			return false;
	}
	return !line->ended_there || close_line(relay, line);
}

/* What comes */

static bool ended(struct relay *relay, struct line *line)
{
	if (line->ended_there)
		return end(relay, "the lender ended a stream twice");
	line->ended_there = true;
	if (line->watch.fd >= 0)
		return give_queued(relay, line);
	settle(relay, line);
	return true;
}

static bool understand_frame(struct relay *relay, const struct frame *frame)
{
	struct line *line = &relay->lines[frame->stream];

	if (frame->type == FRAME_HELLO || frame->type == FRAME_OPEN || !line->open)
		return end(relay, "the lender sent something that is no frame");
	if (frame->type == FRAME_CLOSE)
		return ended(relay, line);
	if (frame->type == FRAME_CREDIT) {
		if (frame_number(frame->payload) > WINDOW - line->room)
			return end(relay, "the lender took more than it was sent");
		line->room += frame_number(frame->payload);
		return true;
	}
	if (line->ended_there || frame->length > line->may_come)
		return end(relay, "the lender sent more than it may");
	line->may_come -= frame->length;
	relay->current = frame->stream;
	relay->left = frame->length;
	return true;
}

/* Take the frames that have come; of data also what there is of one. */
static bool understand(struct relay *relay)
{
	struct frame frame = {.length = 0};
	size_t at = 0;
	int head = 1;

	while (at < relay->have) {
		if (relay->left) {
			size_t piece = relay->have - at < relay->left ? relay->have - at : relay->left;

			if (!give(relay, &relay->lines[relay->current], relay->in + at, piece))
				return false;
			relay->left -= (uint32_t)piece;
			at += piece;
			continue;
		}
		head = frame_head(relay->in + at, relay->have - at, &frame);
		if (head < 0)
			return end(relay, "the lender sent something that is no frame");
		if (!head || (frame.type != FRAME_DATA && relay->have - at - FRAME_HEADER < frame.length))
			break;
		if (!understand_frame(relay, &frame))
			return false;
		at += FRAME_HEADER + (frame.type == FRAME_DATA ? 0 : frame.length);
	}
	relay->have -= at;
	memmove(relay->in, relay->in + at, relay->have);
	return true;
}

/* The loop */

static void watch_all(struct relay *relay)
{
	watch_for(&relay->port, EPOLLIN | (bytes_used(&relay->out) ? EPOLLOUT : 0U));
	for (unsigned i = 0; i < SERVICES_MAX; i++)
		if (relay->listeners[i].fd >= 0)
			watch_for(&relay->listeners[i],
				  bytes_used(&relay->out) < OUT_ROOM && relay->lines_open < STREAMS ? EPOLLIN : 0);
	for (unsigned i = 1; i <= STREAMS; i++)
		if (relay->lines[i].watch.fd >= 0)
			watch_for(&relay->lines[i].watch, (may_take(relay, &relay->lines[i]) ? EPOLLIN : 0U) |
								  (bytes_used(&relay->lines[i].queue) ? EPOLLOUT : 0U));
}

static bool turn(struct relay *relay, uint64_t tag, uint32_t events)
{
	struct line *line = tag <= STREAMS ? &relay->lines[tag] : NULL;

	if (tag == PORT)
		return !(events & ~(uint32_t)EPOLLOUT) || (read_port(relay) && understand(relay));
	if (tag >= LISTENER)
		return accept_line(relay, (unsigned)(tag - LISTENER));
	if (line->watch.fd >= 0 && events & EPOLLOUT && !give_queued(relay, line))
		return false;
	return line->watch.fd < 0 || !(events & ~(uint32_t)EPOLLOUT) || take(relay, line);
}

void relay_run(struct relay *relay)
{
	struct epoll_event events[EVENTS];
	bool good = understand(relay); /* what came with the answer to the hello */

	while (good) {
		int count;

		watch_all(relay);
		count = epoll_wait(relay->epoll, events, EVENTS, -1);
		if (count < 0 && errno != EINTR)
			good = end(relay, "it cannot wait");
		for (int i = 0; i < count && good; i++)
			good = turn(relay, events[i].data.u64, events[i].events);
		good = good && write_port(relay);
	}
}
