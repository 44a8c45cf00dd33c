/* TLS over descriptors that never wait: what has come is there, whatever came with it. */
#include "tls.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"

static struct key key = {.identity = "one", .bytes = {1, 2, 3}, .size = 32};

/* Two ends that have shaken hands. */
static void connect_ends(struct tls *server, struct tls *client)
{
	const char *why = NULL;
	int ends[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
	CHECK(tls_open(server, ends[0], true, &key) && tls_open(client, ends[1], false, &key));
	while (!server->ready || !client->ready)
		CHECK((client->ready || tls_handshake(client, &why) >= 0) && (server->ready || tls_handshake(server, &why) >= 0));
}

static void close_end(struct tls *tls)
{
	int fd = tls->fd;

	tls_close(tls);
	close(fd);
}

/* New keys come in the same read of the socket as the bytes behind them, which no event will tell of again. */
static void test_new_keys(gnutls_datum_t text, unsigned flags)
{
	struct tls server, client;
	const char *why = NULL;
	char got[64] = "";

	connect_ends(&server, &client);
	for (int round = 0; round < 3; round++) {
		CHECK(!gnutls_session_key_update(server.session, flags));
		CHECK(tls_write(&server, text.data, text.size, &why) == (ssize_t)text.size && !tls_wants_write(&server));
		CHECK(tls_read(&client, got, sizeof got, &why) == (ssize_t)text.size);
		CHECK(!memcmp(got, text.data, text.size));
		CHECK(tls_read(&client, got, sizeof got, &why) == 0);
		/* And the other way, with the answer to the new keys before it, if there is one. */
		CHECK(tls_write(&client, text.data, text.size, &why) == (ssize_t)text.size);
		CHECK(tls_read(&server, got, sizeof got, &why) == (ssize_t)text.size);
	}
	close_end(&client);
	CHECK(tls_read(&server, got, sizeof got, &why) < 0 && why);
	close_end(&server);
}

int main(void)
{
	gnutls_datum_t text = {(unsigned char *)"what came", 9};

	test_new_keys(text, 0);
	test_new_keys(text, GNUTLS_KU_PEER);
	return 0;
}
