#include "pump.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bytes.h"
#include "cleanup.h"
#include "loop.h"
#include "meter.h"

enum { HOLD = 512 * 1024, PIECE = 256 * 1024, CONNECT_MS = 10000, EVERY_MS = 50 };

struct both {
	int lender, port;
	struct tls tls;
	struct bytes out, in; /* to the lender, to the port */
	struct meter meter;
};

static int complain(const char *what, const char *why)
{
	fprintf(stderr, "vmcoal-gpu: %s: %s\n", what, why);
	return 1;
}

/* Returns a connected socket, or -1 with errno; the first address that answers within the time. */
static int connect_lender(const struct pump *pump, const char **why)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found, *each;
	int failed = getaddrinfo(pump->address, pump->port, &hints, &found), fd = -1, error = 0;

	if (failed) {
		*why = gai_strerror(failed);
		return -1;
	}
	for (each = found; each && fd < 0; each = each->ai_next) {
		socklen_t size = sizeof error;

		fd = socket(each->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		error = errno;
		if (fd < 0)
			continue;
		error = connect(fd, each->ai_addr, each->ai_addrlen) ? errno : 0;
		if (error == EINPROGRESS) {
			struct pollfd wait = {.fd = fd, .events = POLLOUT};

			error = poll(&wait, 1, CONNECT_MS) == 1 ? 0 : ETIMEDOUT;
			if (!error)
				getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
		}
		if (error) {
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(found);
	*why = strerror(error);
	return fd;
}

static bool greet(struct both *both, const char **why)
{
	int64_t until = now_ms() + CONNECT_MS;
	int done;

	while (!(done = tls_handshake(&both->tls, why))) {
		struct pollfd wait = {.fd = both->lender, .events = tls_wants_write(&both->tls) ? POLLOUT : POLLIN};
		int64_t left = until - now_ms();

		if (left <= 0 || !poll(&wait, 1, (int)left)) {
			*why = "it does not answer";
			return false;
		}
	}
	return done > 0;
}

/* QEMU makes the socket; it may be a moment late. */
static int connect_port(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int64_t until = now_ms() + CONNECT_MS;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof address.sun_path)
		return -1;
	strcpy(address.sun_path, path);
	while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
		if ((errno != ENOENT && errno != ECONNREFUSED) || now_ms() >= until) {
			close(fd);
			return -1;
		}
		poll(NULL, 0, EVERY_MS);
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

enum outcome { GOES_ON, PORT_ENDED, LENDER_ENDED };

static enum outcome to_lender(struct both *both, const char **why)
{
	for (;;) {
		size_t size = bytes_left(&both->out) < PIECE ? bytes_left(&both->out) : PIECE;
		uint8_t *room = size ? bytes_room(&both->out, size) : NULL;
		ssize_t count = room ? recv(both->port, room, size, 0) : -1;
		bool moved = count > 0;

		if (!count || (room && count < 0 && errno != EAGAIN && errno != EINTR)) {
			*why = count ? strerror(errno) : "it was closed";
			return PORT_ENDED;
		}
		if (moved) {
			meter_sent(&both->meter, room, (size_t)count);
			bytes_added(&both->out, (size_t)count);
		}
		count = tls_write(&both->tls, bytes_front(&both->out), bytes_used(&both->out), why);
		if (count < 0)
			return LENDER_ENDED;
		bytes_take(&both->out, (size_t)count);
		if (!moved || bytes_used(&both->out))
			return GOES_ON;
	}
}

/* Take from the lender what there is, as far as there is room for it; returns how much, or -1. */
static ssize_t take_lender(struct both *both, const char **why)
{
	size_t taken = 0;

	for (;;) {
		size_t size = bytes_left(&both->in) < RECORD ? bytes_left(&both->in) : RECORD;
		uint8_t *room = size && taken < PIECE ? bytes_room(&both->in, size) : NULL;
		ssize_t count = room ? tls_read(&both->tls, room, size, why) : 0;

		if (count <= 0)
			return count < 0 ? -1 : (ssize_t)taken;
		meter_came(&both->meter, room, (size_t)count);
		bytes_added(&both->in, (size_t)count);
		taken += (size_t)count;
	}
}

static enum outcome to_port(struct both *both, const char **why)
{
	ssize_t moved;

	do {
		moved = take_lender(both, why);
		while (bytes_used(&both->in)) {
			ssize_t count = send(both->port, bytes_front(&both->in), bytes_used(&both->in), MSG_NOSIGNAL);

			if (count < 0 && (errno == EAGAIN || errno == EINTR))
				return moved < 0 ? LENDER_ENDED : GOES_ON;
			if (count < 0) {
				*why = strerror(errno);
				return PORT_ENDED;
			}
			bytes_take(&both->in, (size_t)count);
		}
	} while (moved > 0);
	return moved < 0 ? LENDER_ENDED : GOES_ON;
}

static int carry(struct both *both)
{
	const char *why = NULL;
	enum outcome outcome;

	for (;;) {
		struct pollfd wait[2] = {
			{.fd = both->lender,
			 .events = (short)((bytes_left(&both->in) ? POLLIN : 0) |
					   (bytes_used(&both->out) || tls_wants_write(&both->tls) ? POLLOUT : 0))},
			{.fd = both->port,
			 .events = (short)((bytes_left(&both->out) ? POLLIN : 0) | (bytes_used(&both->in) ? POLLOUT : 0))},
		};

		/* A side nobody can act on yet is left out: its hang-up would spin. */
		for (int i = 0; i < 2; i++)
			if (!wait[i].events)
				wait[i].fd = -1;
		if (poll(wait, 2, -1) < 0 && errno != EINTR)
			return complain("poll", strerror(errno));
		outcome = to_lender(both, &why);
		if (outcome == GOES_ON)
			outcome = to_port(both, &why);
		if (outcome == PORT_ENDED) {
			fprintf(stderr, "vmcoal-gpu: the guest's port ended: %s\n", why);
			return 0;
		}
		if (outcome == LENDER_ENDED)
			return complain("the lender is lost", why);
	}
}

int pump_run(const struct pump *pump, const struct key *key)
{
	const char *why = NULL;
	struct both both = {.port = -1};
	int result;

	both.lender = connect_lender(pump, &why);
	if (both.lender < 0)
		return complain("the lender's port cannot be reached", why);
	if (!tune_socket(both.lender, pump->silence) || !tls_open(&both.tls, both.lender, false, key)) {
		close(both.lender);
		return complain("cannot start TLS", strerror(errno));
	}
	bytes_init(&both.out, HOLD);
	bytes_init(&both.in, HOLD);
	if (!greet(&both, &why)) {
		result = complain("the lender does not accept the key", why);
	} else if (!pump->socket) {
		result = 0;
	} else if ((both.port = connect_port(pump->socket)) < 0) {
		result = complain("the guest's port cannot be reached", strerror(errno));
	} else {
		if (pump->meter && !meter_open(&both.meter, pump->meter))
			complain("nothing is counted", strerror(errno));
		result = carry(&both);
		meter_close(&both.meter);
		close(both.port);
	}
	if (both.tls.ready && gnutls_bye(both.tls.session, GNUTLS_SHUT_WR) == GNUTLS_E_SUCCESS)
		tls_flush(&both.tls, &why);
	tls_close(&both.tls);
	close(both.lender);
	bytes_free(&both.out);
	bytes_free(&both.in);
	return result;
}
