#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PAUSE_FIRST_US = 50000, PAUSE_MAX_US = 1000000, CORK_BYTES = 64 << 10 };

/* A link that is idle has no request whose deadline could be over. The kernel asks a peer that was silent for so many
 * seconds, again after each interval, and ends the connection after so many questions; nobody here wakes up for it. */
enum { SILENT_S = 15, INTERVAL_S = 5, QUESTIONS = 4 };

int64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void meter_init(struct meter *meter)
{
	pthread_mutex_init(&meter->lock, NULL);
}

void meter_reset(struct meter *meter)
{
	memset(&meter->latency, 0, sizeof meter->latency);
	meter->bytes_in = meter->bytes_out = meter->plain_in = meter->plain_out = 0;
	pthread_mutex_lock(&meter->lock);
	meter->flow.rate = 0;
	meter->flow.since_us = 0;
	pthread_mutex_unlock(&meter->lock);
}

uint64_t meter_rate(struct meter *meter)
{
	uint64_t rate;

	pthread_mutex_lock(&meter->lock);
	rate = meter->flow.rate;
	pthread_mutex_unlock(&meter->lock);
	return rate;
}

/* A request without bytes says nothing of how many a link takes. */
static void note_sent(struct link *link, const struct request *request)
{
	if (request->trim)
		return;
	pthread_mutex_lock(&link->meter->lock);
	flow_sent(&link->meter->flow, request->bytes, request->sent_us);
	pthread_mutex_unlock(&link->meter->lock);
}

static void note_done(struct link *link, const struct request *request)
{
	if (request->trim)
		return;
	pthread_mutex_lock(&link->meter->lock);
	flow_done(&link->meter->flow, request->bytes, request->failed ? 0 : request->bytes, now_us());
	pthread_mutex_unlock(&link->meter->lock);
}

void link_init(struct link *link, int epoll, void *tag, struct requests *done, struct meter *meter,
	       int64_t deadline_us)
{
	memset(link, 0, sizeof *link);
	link->epoll = epoll;
	link->tag = tag;
	link->done = done;
	link->meter = meter;
	link->fd = link->left = -1;
	link->deadline_us = deadline_us;
	link->pause_us = PAUSE_FIRST_US;
	TAILQ_INIT(&link->sent);
}

static void keep_asking(int fd, bool on)
{
	int value = on, silent = SILENT_S, interval = INTERVAL_S, questions = QUESTIONS;

	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &silent, sizeof silent);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &questions, sizeof questions);
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value);
}

/* Keep the socket beyond libnbd where a write was not answered. libnbd closed it itself if the store did. That a peer is
 * silent says nothing of what it will still do with the write, so nobody asks any more. */
static int keep_socket(const struct link *link)
{
	int fd = link->nbd ? nbd_aio_get_fd(link->nbd) : -1, left;
	const struct request *request;

	TAILQ_FOREACH (request, &link->sent, entry)
		if (request->write)
			break;
	left = request && fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	if (left >= 0) {
		keep_asking(left, false);
		shutdown(left, SHUT_WR);
	}
	return left;
}

static void end(struct link *link, enum link_state state, const char *why)
{
	struct request *request;

	/* What libnbd says of its error is freed with the next call of it, such as those of keep_socket. */
	snprintf(link->why, sizeof link->why, "%s", why ? why : "it failed");
	/* Deregistered before it is closed, or the next descriptor with its number would be watched in its place. */
	if (link->fd >= 0)
		epoll_ctl(link->epoll, EPOLL_CTL_DEL, link->fd, NULL);
	link->fd = -1;
	link->corked = false;
	link->direction = 0;
	link->left = keep_socket(link);
	link->limbo = NULL;
	nbd_close(link->nbd);
	link->nbd = NULL;
	link->state = state;
	link->retry_us = now_us() + link->pause_us;
	link->pause_us = link->pause_us * 2 < PAUSE_MAX_US ? link->pause_us * 2 : PAUSE_MAX_US;
	while ((request = TAILQ_FIRST(&link->sent))) {
		TAILQ_REMOVE(&link->sent, request, entry);
		request->failed = true;
		note_done(link, request);
		TAILQ_INSERT_TAIL(link->done, request, entry);
	}
	link->sent_count = 0;
	link->sent_bytes = 0;
}

/* A long write is a record of TLS after the other, 16 KiB each. Sent as they come, each wakes the server, and ends with a
 * packet that is not full. */
static void cork(struct link *link, bool on)
{
	int value = on;

	if (on != link->corked && !setsockopt(nbd_aio_get_fd(link->nbd), IPPROTO_TCP, TCP_CORK, &value, sizeof value))
		link->corked = on;
}

/* Watch what libnbd waits for. It may go on with another descriptor when an address does not answer. */
static void watch(struct link *link)
{
	int fd = nbd_aio_get_fd(link->nbd);
	unsigned direction = nbd_aio_get_direction(link->nbd);
	struct epoll_event event = {.data.ptr = link->tag};

	if (link->corked && !(direction & LIBNBD_AIO_DIRECTION_WRITE))
		cork(link, false);
	if (fd == link->fd && direction == link->direction)
		return;
	if (fd != link->fd && link->fd >= 0)
		epoll_ctl(link->epoll, EPOLL_CTL_DEL, link->fd, NULL);
	if (direction & LIBNBD_AIO_DIRECTION_READ)
		event.events |= EPOLLIN;
	if (direction & LIBNBD_AIO_DIRECTION_WRITE)
		event.events |= EPOLLOUT;
	/* libnbd may have closed the old one itself and opened the new one with the same number. */
	if (fd >= 0 && epoll_ctl(link->epoll, EPOLL_CTL_MOD, fd, &event) < 0 && errno == ENOENT)
		epoll_ctl(link->epoll, EPOLL_CTL_ADD, fd, &event);
	link->fd = fd;
	link->direction = direction;
}

/* What became of the connection after libnbd did something. */
static void review(struct link *link)
{
	if (nbd_aio_is_dead(link->nbd) || nbd_aio_is_closed(link->nbd)) {
		int error = nbd_get_errno();
		bool refused = link->state == LINK_CONNECTING && error == ENOENT;

		end(link, refused ? LINK_REFUSED : LINK_DOWN,
		    refused ? "the store does not have these bytes any more" : nbd_get_error());
		return;
	}
	if (link->state == LINK_CONNECTING && nbd_aio_is_ready(link->nbd)) {
		if (nbd_get_size(link->nbd) != (int64_t)link->size || nbd_is_read_only(link->nbd) != 0) {
			end(link, LINK_REFUSED, "the store does not have what was granted");
			return;
		}
		link->state = LINK_READY;
		keep_asking(nbd_aio_get_fd(link->nbd), true);
		link->pause_us = PAUSE_FIRST_US;
		link->why[0] = 0;
	}
	watch(link);
}

void link_open(struct link *link, const struct meta_store *store, uint64_t size)
{
	char port[8];
	bool ok;

	link->size = size;
	link->serial = store->serial;
	link->connecting_us = now_us();
	link->nbd = nbd_create();
	if (!link->nbd) {
		end(link, LINK_DOWN, nbd_get_error());
		return;
	}
	snprintf(port, sizeof port, "%u", store->port);
	/* Bounds and flags are right by construction; a page that was read in part is an error of its own. */
	ok = !nbd_set_strict_mode(link->nbd, 0) && !nbd_set_pread_initialize(link->nbd, false) &&
	     !nbd_set_export_name(link->nbd, store->export) && !nbd_set_full_info(link->nbd, false);
	if (ok && store->psk_file[0])
		ok = !nbd_set_tls(link->nbd, LIBNBD_TLS_REQUIRE) && !nbd_set_tls_username(link->nbd, store->identity) &&
		     !nbd_set_tls_psk_file(link->nbd, store->psk_file);
	link->state = LINK_CONNECTING;
	if (!ok || nbd_aio_connect_tcp(link->nbd, store->address, port) < 0)
		end(link, LINK_DOWN, nbd_get_error());
	else
		review(link);
}

void link_ready(struct link *link, unsigned events)
{
	unsigned direction;

	if (!link->nbd)
		return;
	direction = nbd_aio_get_direction(link->nbd);
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
		nbd_aio_notify_read(link->nbd);
	else if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
		nbd_aio_notify_write(link->nbd);
	review(link);
}

/* Called within libnbd, which must not be called from here. */
static int completed(void *user, int *error)
{
	struct request *request = user;
	struct link *link = request->link;
	int64_t took;

	TAILQ_REMOVE(&link->sent, request, entry);
	link->sent_count--;
	link->sent_bytes -= request->bytes;
	request->failed = *error != 0;
	link->progress_us = now_us();
	note_done(link, request);
	if (!request->failed && !request->trim) {
		atomic_fetch_add_explicit(request->write ? &link->meter->bytes_out : &link->meter->bytes_in,
					  request->bytes, memory_order_relaxed);
		atomic_fetch_add_explicit(request->write ? &link->meter->plain_out : &link->meter->plain_in,
					  (uint64_t)request->pages * PAGE_SIZE, memory_order_relaxed);
	}
	if (request->timed && !request->failed) {
		took = link->progress_us - request->sent_us;
		histogram_note(&link->meter->latency, took);
		pace_note(&link->pace, took);
	}
	TAILQ_INSERT_TAIL(link->done, request, entry);
	return 1;
}

void link_send(struct link *link, struct request *request, uint64_t offset)
{
	nbd_completion_callback callback = {.callback = completed, .user_data = request};
	int64_t cookie;

	request->link = link;
	request->failed = false;
	request->sent_us = now_us();
	TAILQ_INSERT_TAIL(&link->sent, request, entry);
	link->sent_count++;
	link->sent_bytes += request->bytes;
	note_sent(link, request);
	if (request->write && !request->trim && request->bytes >= CORK_BYTES)
		cork(link, true);
	if (request->trim)
		cookie = nbd_aio_trim(link->nbd, request->bytes, offset, callback, 0);
	else if (request->write)
		cookie = nbd_aio_pwrite(link->nbd, request->buffer, request->bytes, offset, callback, 0);
	else
		cookie = nbd_aio_pread(link->nbd, request->buffer, request->bytes, offset, callback, 0);
	/* A request that was not taken is still in the list: it fails with the link. */
	if (cookie < 0)
		end(link, LINK_DOWN, nbd_get_error());
	else
		review(link);
}

int64_t link_check(struct link *link, int64_t now)
{
	const struct request *oldest = TAILQ_FIRST(&link->sent);
	int64_t until = INT64_MAX;

	if (link->state == LINK_CONNECTING)
		until = link->connecting_us + link->deadline_us;
	else if (link->state == LINK_READY && oldest)
		until = (oldest->sent_us > link->progress_us ? oldest->sent_us : link->progress_us) + link->deadline_us;
	if (until > now)
		return until;
	if (link->state == LINK_CONNECTING) {
		end(link, LINK_DOWN, "it does not answer");
		return INT64_MAX;
	}
	end(link, LINK_DOWN, "it does not answer in time");
	return -1;
}

void link_close(struct link *link, const char *why)
{
	if (!link->nbd)
		return;
	end(link, LINK_DOWN, why);
	link->retry_us = now_us();
	link->pause_us = PAUSE_FIRST_US;
}
