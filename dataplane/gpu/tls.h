/* One end of a TLS 1.3 connection whose two ends know the same key (RFC 8446, 2.2), without ever waiting. */
#pragma once

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { KEY_MAX = 64, IDENTITY_MAX = 64 };

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
	size_t unsent;	 /* bytes that GnuTLS wants to be given again */
};

/* `fd` is a connected non-blocking socket that stays the caller's. Returns false without memory. */
bool tls_open(struct tls *tls, int fd, bool server, const struct key *key);
void tls_close(struct tls *tls);

/* Whether it waits to write, in the handshake. */
bool tls_wants_write(const struct tls *tls);

/* Each returns how many bytes there were, 0 if it has to wait, or -1 with `why`: it ended or failed. */
int tls_handshake(struct tls *tls, const char **why); /* 1: ready */
ssize_t tls_read(struct tls *tls, void *data, size_t size, const char **why);

/* What it returned 0 for is to be offered again, with the same bytes at its front. */
ssize_t tls_write(struct tls *tls, const void *data, size_t size, const char **why);

/* Non-blocking, without delay, and ended by the kernel if the other host is silent for `seconds`. */
bool tune_socket(int fd, int seconds);
