#include "server.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "cleanup.h"
#include "packet.h"
#include "verbs.h"

struct connection {
	struct source source;
	struct holder *holder;
	bool watching;
	LIST_ENTRY(connection) link;
};

static void disconnect(struct connection *connection)
{
	struct holder *holder = connection->holder;

	LIST_REMOVE(connection, link);
	holder->connection_count--;
	loop_close_source(&holder->loop, &connection->source);
	free(connection);
}

void server_broadcast(struct holder *holder, const struct reply *event)
{
	struct connection *connection;

	LIST_FOREACH (connection, &holder->connections, link)
		if (connection->watching && !packet_send(connection->source.fd, event, -1)) {
			/* Freed later, by the end that it now reads: this may be within a request of its own. */
			connection->watching = false;
			shutdown(connection->source.fd, SHUT_RDWR);
		}
}

static void connection_ready(struct source *source)
{
	static struct packet packet;
	static struct request request;
	static struct reply reply;
	struct connection *connection = container_of(source, struct connection, source);
	struct refusal why;
	struct call call = {.request = &request, .packet = &packet, .watching = &connection->watching, .reply = &reply,
			    .answer_fd = -1, .why = &why};
	int received = packet_receive(source->fd, &packet);
	bool ok;

	if (received < 0)
		disconnect(connection);
	if (received <= 0)
		return;
	reply_begin(&reply, "ok");
	if (packet.too_many_fds)
		ok = refuse(&why, E2BIG, "more than %d descriptors, or no room for them", FDS_MAX);
	else if (packet.too_long)
		ok = refuse(&why, EMSGSIZE, "the packet is longer than %d bytes", PACKET_MAX);
	else
		ok = request_parse(packet.data, packet.length, packet.fd_count, &request, &why) &&
		     verb_run(connection->holder, &call);
	packet_close_fds(&packet);
	if (ok && reply.overflow)
		ok = refuse(&why, EMSGSIZE, "the answer is longer than %d bytes", PACKET_MAX);
	if (!ok)
		reply_refusal(&reply, &why);
	if (!packet_send(source->fd, &reply, ok ? call.answer_fd : -1))
		disconnect(connection);
}

static void listener_ready(struct source *source)
{
	struct holder *holder = container_of(source, struct holder, listener);
	AUTO_CLOSE int fd = packet_accept(source->fd, &holder->spare);
	struct connection *connection;

	if (fd < 0 || holder->connection_count == CONNECTIONS_MAX)
		return;
	connection = calloc(1, sizeof *connection);
	if (!connection)
		return;
	connection->holder = holder;
	connection->source.fd = fd;
	connection->source.ready = connection_ready;
	if (loop_add(&holder->loop, &connection->source) < 0) {
		free(connection);
		return;
	}
	take_fd(&fd);
	LIST_INSERT_HEAD(&holder->connections, connection, link);
	holder->connection_count++;
}

/* One holder a folder: the lock on the socket's folder, kept for life, lets a stale socket be replaced without a race. */
static int lock_folder(const char *path)
{
	char folder[sizeof((struct sockaddr_un *)0)->sun_path];
	AUTO_CLOSE int fd = -1;

	snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
	fd = open(*folder ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "vmcoal-holder: cannot open folder %s: %s\n", folder, strerror(errno));
		return EXIT_FAILURE;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		fprintf(stderr, "vmcoal-holder: another holder serves folder %s\n", folder);
		return EXIT_TAKEN;
	}
	take_fd(&fd);
	return 0;
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask;
	int bound;

	strcpy(address.sun_path, path);
	mask = umask(0177);
	bound = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&address, sizeof address);
	umask(mask);
	return bound < 0 || listen(fd, 128) < 0 ? -1 : take_fd(&fd);
}

int server_open(struct holder *holder, const char *path)
{
	struct stat old;
	int taken;

	if (path[0] != '/' || strlen(path) >= sizeof((struct sockaddr_un *)0)->sun_path) {
		fprintf(stderr, "vmcoal-holder: the socket must be an absolute path of at most %zu bytes\n",
			sizeof((struct sockaddr_un *)0)->sun_path - 1);
		return EXIT_FAILURE;
	}
	taken = lock_folder(path);
	if (taken)
		return taken;
	if (!lstat(path, &old) && !S_ISSOCK(old.st_mode)) {
		fprintf(stderr, "vmcoal-holder: %s exists and is not a socket\n", path);
		return EXIT_FAILURE;
	}
	unlink(path);
	holder->listener.ready = listener_ready;
	holder->listener.fd = listen_at(path);
	if (holder->listener.fd < 0 || loop_add(&holder->loop, &holder->listener) < 0) {
		fprintf(stderr, "vmcoal-holder: cannot listen at %s: %s\n", path, strerror(errno));
		return EXIT_FAILURE;
	}
	holder->spare = packet_spare();
	return 0;
}

void server_close(struct holder *holder)
{
	struct connection *connection;

	loop_close_source(&holder->loop, &holder->listener);
	while ((connection = LIST_FIRST(&holder->connections)))
		disconnect(connection);
}
