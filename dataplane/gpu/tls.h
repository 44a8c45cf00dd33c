/* One end of a TLS 1.3 connection whose two ends know the same key (RFC 8446, 2.2), without ever waiting. */
#pragma once

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "bytes.h"

/* WIRE: how much of the wire's bytes is sent and received at a time. A record has 16 KiB: sent one by one, they cost the
 * kernel more than their cipher. */
enum { KEY_MAX = 64, IDENTITY_MAX = 64, RECORD = 16 * 1024, WIRE = 256 * 1024 };

/* IDENTITY:HEX, as psktool(1) and nbdkit have it. */
struct key {
	char identity[IDENTITY_MAX + 1];
	uint8_t bytes[KEY_MAX];
	size_t size;
};

bool key_read(struct key *key, const char *path);

struct tls {
	gnutls_session_t session;
	void *credentials;
	bool server;
	bool ready;	 /* the handshake is over */
	int fd;
	struct bytes out, in; /* the wire's: not sent yet, not understood yet */
};

/* `fd` is a connected non-blocking socket that stays the caller's. Returns false without memory. */
bool tls_open(struct tls *tls, int fd, bool server, const struct key *key);
void tls_close(struct tls *tls);

/* Whether something waits to be sent. */
bool tls_wants_write(const struct tls *tls);

/* Each returns how many bytes there were, 0 if it has to wait, or -1 with `why`: it ended or failed. */
int tls_handshake(struct tls *tls, const char **why); /* 1: ready */
ssize_t tls_read(struct tls *tls, void *data, size_t size, const char **why);

/* It takes as many of the bytes as it has room for. What it took may wait to be sent: see `tls_wants_write`. */
ssize_t tls_write(struct tls *tls, const void *data, size_t size, const char **why);

/* Send what waits, as far as the socket takes it. Returns false, with `why`, where that failed. */
bool tls_flush(struct tls *tls, const char **why);

/* Non-blocking, without delay, and ended by the kernel if the other host is silent for `seconds`. */
bool tune_socket(int fd, int seconds);
