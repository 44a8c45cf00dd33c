#include "tls.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>


static const char priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK";

bool key_read(struct key *key, const char *path)
{
	char line[IDENTITY_MAX + 2 * KEY_MAX + 4];
	FILE *file = fopen(path, "re");
	bool read = file && fgets(line, sizeof line, file);
	char *hex;

	if (file)
		fclose(file);
	if (!read)
		return false;
	line[strcspn(line, "\n")] = 0;
	hex = strchr(line, ':');
	key->size = 0;
	if (!hex || hex == line || hex - line > IDENTITY_MAX)
		return false;
	*hex++ = 0;
	strcpy(key->identity, line);
	for (unsigned byte; key->size < KEY_MAX && isxdigit((unsigned char)hex[0]) && isxdigit((unsigned char)hex[1]); hex += 2) {
		sscanf(hex, "%2x", &byte);
		key->bytes[key->size++] = (uint8_t)byte;
	}
	explicit_bzero(line, sizeof line);
	return key->size >= 16;
}

static int find_key(gnutls_session_t session, const char *identity, gnutls_datum_t *found)
{
	const struct key *key = gnutls_session_get_ptr(session);

	if (strcmp(identity, key->identity))
		return -1;
	found->data = gnutls_malloc(key->size);
	if (!found->data)
		return -1;
	memcpy(found->data, key->bytes, key->size);
	found->size = (unsigned)key->size;
	return 0;
}

static bool give_key(struct tls *tls, const struct key *key)
{
	gnutls_psk_server_credentials_t server;
	gnutls_psk_client_credentials_t client;
	gnutls_datum_t datum = {.data = (unsigned char *)key->bytes, .size = (unsigned)key->size};

	if (tls->server) {
		if (gnutls_psk_allocate_server_credentials(&server) < 0)
			return false;
		tls->credentials = server;
		gnutls_psk_set_server_credentials_function(server, find_key);
	} else {
		if (gnutls_psk_allocate_client_credentials(&client) < 0)
			return false;
		tls->credentials = client;
		if (gnutls_psk_set_client_credentials(client, key->identity, &datum, GNUTLS_PSK_KEY_RAW) < 0)
			return false;
	}
	return gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, tls->credentials) >= 0;
}

static bool again(ssize_t result)
{
	return result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED;
}

/* The wire. GnuTLS gives and takes bytes here, and they are sent and received many records at a time. */

static ssize_t push(gnutls_transport_ptr_t ptr, const giovec_t *pieces, int count)
{
	struct tls *tls = ptr;
	size_t size = 0;
	uint8_t *room;

	for (int i = 0; i < count; i++)
		size += pieces[i].iov_len;
	room = bytes_room(&tls->out, size);
	if (!room) {
		gnutls_transport_set_errno(tls->session, EAGAIN);
		return -1;
	}
	for (int i = 0; i < count; i++) {
		memcpy(room, pieces[i].iov_base, pieces[i].iov_len);
		room += pieces[i].iov_len;
	}
	bytes_added(&tls->out, size);
	return (ssize_t)size;
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t size)
{
	struct tls *tls = ptr;
	size_t used = bytes_used(&tls->in);

	if (!used) {
		uint8_t *room = bytes_room(&tls->in, WIRE);
		ssize_t count = room ? recv(tls->fd, room, WIRE, 0) : -1;

		if (count <= 0) {
			gnutls_transport_set_errno(tls->session, room ? errno : ENOMEM);
			return count;
		}
		bytes_added(&tls->in, (size_t)count);
		used = (size_t)count;
	}
	size = size < used ? size : used;
	memcpy(data, bytes_front(&tls->in), size);
	bytes_take(&tls->in, size);
	return (ssize_t)size;
}

bool tls_flush(struct tls *tls, const char **why)
{
	while (bytes_used(&tls->out)) {
		ssize_t count = send(tls->fd, bytes_front(&tls->out), bytes_used(&tls->out), MSG_NOSIGNAL);

		if (count < 0 && (errno == EAGAIN || errno == EINTR))
			return true;
		if (count < 0) {
			*why = strerror(errno);
			return false;
		}
		bytes_take(&tls->out, (size_t)count);
	}
	return true;
}

bool tls_open(struct tls *tls, int fd, bool server, const struct key *key)
{
	*tls = (struct tls){.server = server, .fd = fd};
	bytes_init(&tls->out, WIRE);
	bytes_init(&tls->in, WIRE);
	if (gnutls_init(&tls->session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
		return false;
	gnutls_session_set_ptr(tls->session, (void *)key);
	if (gnutls_priority_set_direct(tls->session, priorities, NULL) < 0 || !give_key(tls, key)) {
		tls_close(tls);
		return false;
	}
	gnutls_transport_set_ptr(tls->session, tls);
	gnutls_transport_set_vec_push_function(tls->session, push);
	gnutls_transport_set_pull_function(tls->session, pull);
	gnutls_handshake_set_timeout(tls->session, GNUTLS_INDEFINITE_TIMEOUT); /* whoever calls has a deadline */
	return true;
}

void tls_close(struct tls *tls)
{
	if (tls->session)
		gnutls_deinit(tls->session);
	if (tls->credentials && tls->server)
		gnutls_psk_free_server_credentials(tls->credentials);
	else if (tls->credentials)
		gnutls_psk_free_client_credentials(tls->credentials);
	bytes_free(&tls->out);
	bytes_free(&tls->in);
	*tls = (struct tls){.session = NULL};
}

bool tls_wants_write(const struct tls *tls)
{
	return bytes_used(&tls->out);
}

int tls_handshake(struct tls *tls, const char **why)
{
	int result = gnutls_handshake(tls->session);
	const char *unsent;

	/* What it has to say of a failure too. */
	if (!tls_flush(tls, &unsent) && (result == GNUTLS_E_SUCCESS || again(result))) {
		*why = unsent;
		return -1;
	}
	if (result == GNUTLS_E_SUCCESS) {
		tls->ready = true;
		return 1;
	}
	if (again(result) || !gnutls_error_is_fatal(result))
		return 0;
	*why = gnutls_strerror(result);
	return -1;
}

ssize_t tls_read(struct tls *tls, void *data, size_t size, const char **why)
{
	ssize_t count;

	/* A record without data, such as one with new keys, is told as if nothing were there; but what was received with
	 * it raises no event any more. */
	do
		count = gnutls_record_recv(tls->session, data, size);
	while (count < 0 && !gnutls_error_is_fatal((int)count) && bytes_used(&tls->in));
	if (count > 0)
		return count;
	if (count < 0 && (again(count) || !gnutls_error_is_fatal((int)count)))
		return 0;
	*why = count == 0 || count == GNUTLS_E_PREMATURE_TERMINATION ? "the other end closed the connection"
								     : gnutls_strerror((int)count);
	return -1;
}

ssize_t tls_write(struct tls *tls, const void *data, size_t size, const char **why)
{
	enum { RECORD_MAX = RECORD + 1024 }; /* RFC 8446, 5.2: 256 bytes more at most, and a header */
	size_t taken = 0;

	while (taken < size) {
		size_t piece = size - taken < RECORD ? size - taken : RECORD;
		ssize_t count;

		if (bytes_left(&tls->out) < RECORD_MAX && !tls_flush(tls, why))
			return -1;
		if (bytes_left(&tls->out) < RECORD_MAX)
			break;
		count = gnutls_record_send(tls->session, (const uint8_t *)data + taken, piece);
		if (count < 0 && !again(count)) {
			*why = gnutls_strerror((int)count);
			return -1;
		}
		if (count < 0)
			break;
		taken += (size_t)count;
	}
	return tls_flush(tls, why) ? (ssize_t)taken : -1;
}

bool tune_socket(int fd, int seconds)
{
	int on = 1, idle = seconds > 3 ? seconds / 3 : 1, probes = 3, user = seconds * 1000;
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && !fcntl(fd, F_SETFL, flags | O_NONBLOCK) &&
	       !setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) &&
	       !setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) &&
	       !setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) &&
	       !setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &idle, sizeof idle) &&
	       !setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes) &&
	       !setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user, sizeof user);
}
