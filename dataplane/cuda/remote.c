#include "remote.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "generated/ops.h"

enum { TURN_MS = 10, PIECES_MAX = 4, GATHER_NS = 50 * 1000 };

/* Reading: only by the thread that has set `reading` */

/* Forget everybody: those who wait see that the lender is lost. */
static void lose(struct remote *remote)
{
	struct waiter *waiter = remote->first;

	atomic_store(&remote->lost, true);
	shutdown(remote->fd, SHUT_RDWR);
	remote->first = NULL;
	remote->current = NULL;
	while (waiter) {
		struct waiter *next = waiter->next;

		if (waiter->own)
			free(waiter);
		waiter = next;
	}
}

static struct waiter *waiter_of(struct remote *remote, uint32_t sequence)
{
	struct waiter *waiter;

	pthread_mutex_lock(&remote->lock);
	waiter = remote->first;
	while (waiter && waiter->answer.sequence != sequence)
		waiter = waiter->next;
	pthread_mutex_unlock(&remote->lock);
	return waiter;
}

static void finish(struct remote *remote)
{
	struct waiter *waiter = remote->current, **link = &remote->first;

	pthread_mutex_lock(&remote->lock);
	while (*link != waiter)
		link = &(*link)->next;
	*link = waiter->next;
	waiter->answer = remote->answer;
	waiter->done = true;
	if (waiter->own)
		free(waiter);
	pthread_mutex_unlock(&remote->lock);
	remote->current = NULL;
	remote->have = 0;
}

/* A header is complete: find who waits for it, and see that the rest fits there. */
static bool begin(struct remote *remote)
{
	struct waiter *waiter;

	answer_parse(remote->header, &remote->answer);
	waiter = waiter_of(remote, remote->answer.sequence);
	if (!waiter)
		return false;
	if (remote->answer.length > waiter->room) {
		if (!waiter->grows || remote->answer.length > waiter->most)
			return false;
		waiter->to = malloc(remote->answer.length);
		if (!waiter->to)
			return false;
		waiter->room = remote->answer.length;
	}
	remote->current = waiter;
	return true;
}

/* Take what there is. Returns false where the lender is lost, or what came is no answer. */
static bool take(struct remote *remote)
{
	for (;;) {
		size_t body = remote->have - (remote->current ? ANSWER_SIZE : remote->have);
		ssize_t count;

		if (!remote->current)
			count = recv(remote->fd, remote->header + remote->have, ANSWER_SIZE - remote->have, MSG_DONTWAIT);
		else if (body < remote->answer.length)
			count = recv(remote->fd, remote->current->to + body, remote->answer.length - body, MSG_DONTWAIT);
		else {
			finish(remote);
			return true;
		}
		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (count <= 0)
			return false;
		remote->have += (size_t)count;
		if (!remote->current && remote->have == ANSWER_SIZE && !begin(remote))
			return false;
	}
}

/* Wait for something and take it. */
static void receive(struct remote *remote, int timeout)
{
	struct pollfd wait = {.fd = remote->fd, .events = POLLIN};
	int ready = poll(&wait, 1, timeout);
	bool good = ready ? (ready < 0 && errno == EINTR) || (ready > 0 && take(remote)) : remote->patience < 0;

	pthread_mutex_lock(&remote->lock);
	if (!good)
		lose(remote);
	remote->reading = false;
	pthread_cond_broadcast(&remote->moved);
	pthread_mutex_unlock(&remote->lock);
}

static bool start_reading(struct remote *remote)
{
	bool free;

	pthread_mutex_lock(&remote->lock);
	free = !remote->reading && !atomic_load(&remote->lost);
	if (free)
		remote->reading = true;
	pthread_mutex_unlock(&remote->lock);
	return free;
}

bool remote_wait(struct remote *remote, struct waiter *waiter)
{
	bool done;

	pthread_mutex_lock(&remote->lock);
	while (!waiter->done && !atomic_load(&remote->lost)) {
		if (remote->reading) {
			pthread_cond_wait(&remote->moved, &remote->lock);
			continue;
		}
		remote->reading = true;
		pthread_mutex_unlock(&remote->lock);
		receive(remote, remote->patience);
		pthread_mutex_lock(&remote->lock);
	}
	done = waiter->done;
	pthread_mutex_unlock(&remote->lock);
	return done;
}

/* Sending */

/* The way is full: let it move. The other end may be waiting for us to read its answers. */
static bool let_move(struct remote *remote)
{
	struct pollfd wait = {.fd = remote->fd, .events = POLLOUT};

	if (start_reading(remote)) {
		wait.events |= POLLIN;
		if (poll(&wait, 1, -1) < 0)
			wait.revents = 0;
		pthread_mutex_lock(&remote->lock);
		if (!(wait.revents & ~POLLOUT)) {
			remote->reading = false;
			pthread_cond_broadcast(&remote->moved);
			pthread_mutex_unlock(&remote->lock);
		} else {
			pthread_mutex_unlock(&remote->lock);
			receive(remote, 0);
		}
	} else {
		poll(&wait, 1, TURN_MS); /* another thread reads, for as long as it has to wait itself */
	}
	return !atomic_load(&remote->lost);
}

/* Whether answers are on their way: none begins to be while `sending` is held. */
static bool expects_answers(struct remote *remote)
{
	bool expects;

	pthread_mutex_lock(&remote->lock);
	expects = remote->first;
	pthread_mutex_unlock(&remote->lock);
	return expects;
}

static bool put(struct remote *remote, struct iovec *pieces, unsigned count)
{
	/* What no answer can hold up may wait in the kernel, which takes fewer calls. */
	int flags = MSG_NOSIGNAL | (expects_answers(remote) ? MSG_DONTWAIT : 0);

	while (count) {
		struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
		ssize_t sent = sendmsg(remote->fd, &message, flags);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno == EAGAIN) {
			if (!let_move(remote))
				return false;
			continue;
		}
		if (sent < 0)
			return false;
		while (count && (size_t)sent >= pieces->iov_len) {
			sent -= (ssize_t)pieces->iov_len;
			pieces++;
			count--;
		}
		if (count) {
			pieces->iov_base = (uint8_t *)pieces->iov_base + sent;
			pieces->iov_len -= (size_t)sent;
		}
	}
	return true;
}

/* The lender is lost to a sender. A thread that reads notices by itself, and may not be robbed of where it writes to. */
static void lose_sending(struct remote *remote)
{
	shutdown(remote->fd, SHUT_RDWR);
	pthread_mutex_lock(&remote->lock);
	while (remote->reading)
		pthread_cond_wait(&remote->moved, &remote->lock);
	if (!atomic_load(&remote->lost))
		lose(remote);
	pthread_cond_broadcast(&remote->moved);
	pthread_mutex_unlock(&remote->lock);
}

/* Apart, because gcc at -O3 takes the waiter of a caller's stack, which is never its own, for one that is freed here. */
__attribute__((noinline)) static void drop(struct waiter *waiter)
{
	if (waiter && waiter->own)
		free(waiter);
}

/* Send what was gathered, and a request behind it. `sending` is held. */
static bool put_all(struct remote *remote, const struct iovec *pieces, unsigned count)
{
	struct iovec all[PIECES_MAX + 1];
	struct batch *batch = &remote->batch;
	bool sent;

	all[0] = (struct iovec){.iov_base = batch->data, .iov_len = batch->used};
	for (unsigned i = 0; i < count; i++)
		all[i + 1] = pieces[i];
	sent = put(remote, all, count + 1);
	batch->used = 0;
	if (!sent)
		lose_sending(remote);
	return sent;
}

void remote_end(struct remote *remote)
{
	if (pthread_mutex_trylock(&remote->sending))
		return;
	if (remote->batch.used)
		send(remote->fd, remote->batch.data, remote->batch.used, MSG_DONTWAIT | MSG_NOSIGNAL);
	remote->batch.used = 0;
	pthread_mutex_unlock(&remote->sending);
}

/* Sends what nobody else sends: a program may launch and do something else. */
static void *send_gathered(void *argument)
{
	const struct timespec soon = {.tv_nsec = GATHER_NS};
	struct remote *remote = argument;

	prctl(PR_SET_TIMERSLACK, 1);
	pthread_mutex_lock(&remote->sending);
	while (!atomic_load(&remote->lost)) {
		if (!remote->batch.used) {
			remote->batch.idle = true;
			pthread_cond_wait(&remote->batch.filled, &remote->sending);
			remote->batch.idle = false;
			continue;
		}
		pthread_mutex_unlock(&remote->sending);
		nanosleep(&soon, NULL);
		pthread_mutex_lock(&remote->sending);
		if (remote->batch.used && !atomic_load(&remote->lost))
			put_all(remote, NULL, 0);
	}
	remote->batch.running = false;
	pthread_mutex_unlock(&remote->sending);
	return argument;
}

/* See that what was gathered is sent. `sending` is held. */
static bool send_soon(struct remote *remote)
{
	struct batch *batch = &remote->batch;
	sigset_t all, before;
	pthread_t thread;

	if (batch->running) {
		if (batch->idle)
			pthread_cond_signal(&batch->filled);
		return true;
	}
	/* The program's signals are for the program's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	batch->running = !pthread_create(&thread, NULL, send_gathered, remote);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!batch->running)
		return put_all(remote, NULL, 0);
	pthread_detach(thread);
	return true;
}

/* Give a request its number, and a place to who waits for its answer. Returns false if the lender is lost. */
static bool enlist(struct remote *remote, struct request *request, struct waiter *waiter)
{
	struct waiter **link = &remote->first;
	bool there;

	pthread_mutex_lock(&remote->lock);
	there = !atomic_load(&remote->lost);
	if (there) {
		request->sequence = ++remote->sequence;
		if (waiter) {
			waiter->next = NULL;
			waiter->done = false;
			waiter->answer.sequence = request->sequence;
			while (*link)
				link = &(*link)->next;
			*link = waiter;
		}
	}
	pthread_mutex_unlock(&remote->lock);
	return there;
}

bool remote_send(struct remote *remote, struct request *request, const struct iovec *pieces, unsigned count,
		 struct waiter *waiter)
{
	struct iovec all[PIECES_MAX];
	uint8_t header[REQUEST_SIZE];
	bool sent;

	all[0] = (struct iovec){.iov_base = header, .iov_len = sizeof header};
	for (unsigned i = 0; i < count; i++)
		all[i + 1] = pieces[i];
	pthread_mutex_lock(&remote->sending);
	sent = enlist(remote, request, waiter);
	if (!sent) {
		drop(waiter);
	} else {
		cuda_request_pack(header, request);
		if (!waiter && batch_add(&remote->batch, all, count + 1))
			sent = send_soon(remote);
		else
			sent = put_all(remote, all, count + 1);
	}
	pthread_mutex_unlock(&remote->sending);
	return sent;
}

/* Opening */

static bool say_hello(struct remote *remote)
{
	struct writer body = {.data = NULL};
	uint8_t version[8] = {0};
	struct waiter waiter = {.to = version, .room = sizeof version};
	struct request request = {.op = OP_hello, .flags = REQUEST_ANSWER};
	struct iovec piece;
	bool good;

	writer_begin(&body, 0);
	write_text(&body, CUDA_HELLO, sizeof CUDA_HELLO);
	piece = (struct iovec){.iov_base = body.data, .iov_len = body.used};
	request.length = (uint32_t)body.used;
	good = !body.failed && remote_send(remote, &request, &piece, 1, &waiter) && remote_wait(remote, &waiter) &&
	       !waiter.answer.result && waiter.answer.length == sizeof version;
	writer_free(&body);
	if (good) {
		struct reader in = {.at = version, .end = version + sizeof version};

		remote->version = (int)read_number(&in);
	}
	return good;
}

void remote_init(struct remote *remote, int fd, unsigned gpu)
{
	memset(remote, 0, sizeof *remote);
	remote->fd = fd;
	remote->gpu = gpu;
	remote->patience = -1;
	pthread_mutex_init(&remote->sending, NULL);
	pthread_mutex_init(&remote->lock, NULL);
	pthread_mutex_init(&remote->known, NULL);
	pthread_cond_init(&remote->moved, NULL);
	batch_init(&remote->batch);
}

bool remote_open(struct remote *remote, const char *path, unsigned gpu)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	remote_init(remote, -1, gpu);
	remote->patience = HELLO_MS;
	if (strlen(path) >= sizeof address.sun_path)
		return false;
	strcpy(address.sun_path, path);
	remote->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (remote->fd < 0)
		return false;
	if (connect(remote->fd, (struct sockaddr *)&address, sizeof address) || !say_hello(remote)) {
		close(remote->fd);
		return false;
	}
	remote->patience = -1;
	return true;
}
