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

bool tls_open(struct tls *tls, int fd, bool server, const struct key *key)
{
	*tls = (struct tls){.server = server};
	if (gnutls_init(&tls->session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
		return false;
	gnutls_session_set_ptr(tls->session, (void *)key);
	if (gnutls_priority_set_direct(tls->session, priorities, NULL) < 0 || !give_key(tls, key)) {
		tls_close(tls);
		return false;
	}
	gnutls_transport_set_int(tls->session, fd);
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
	*tls = (struct tls){.session = NULL};
}

bool tls_wants_write(const struct tls *tls)
{
	return !tls->ready && gnutls_record_get_direction(tls->session) == 1;
}

static bool again(ssize_t result)
{
	return result == GNUTLS_E_AGAIN || result == GNUTLS_E_INTERRUPTED;
}

int tls_handshake(struct tls *tls, const char **why)
{
	int result = gnutls_handshake(tls->session);

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
	ssize_t count = gnutls_record_recv(tls->session, data, size);

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
	ssize_t count = gnutls_record_send(tls->session, data, tls->unsent ? tls->unsent : size);

	if (count >= 0) {
		tls->unsent = 0;
		return count;
	}
	if (again(count)) {
		if (!tls->unsent)
			tls->unsent = size;
		return 0;
	}
	*why = gnutls_strerror((int)count);
	return -1;
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
