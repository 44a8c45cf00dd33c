#include "keep.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"
#include "cleanup.h"
#include "packet.h"

int keep_connect(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval deadline = {.tv_sec = 5};
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(address.sun_path, path);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof deadline) < 0 ||
	    connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return -1;
	return take_fd(&fd);
}

/* Wait for the answer. packet_receive does not wait, so the first byte is waited for. */
static bool ask(int holder, const struct reply *request, int fd, struct packet *answer)
{
	char byte;

	if (!packet_send(holder, request, fd) || recv(holder, &byte, 1, MSG_PEEK) < 0 ||
	    packet_receive(holder, answer) != 1)
		return false;
	if (!answer->too_long && answer_ok(answer->data, answer->length))
		return true;
	packet_close_fds(answer);
	return false;
}

static bool ask_name(int holder, const char *verb, const char *name, int fd, struct packet *answer)
{
	static struct reply request;

	reply_begin(&request, verb);
	if (name)
		reply_field(&request, "name=%s", name);
	return ask(holder, &request, fd, answer);
}

static struct packet answer;

bool keep_put(int holder, const char *name, int fd)
{
	keep_drop(holder, name);
	return ask_name(holder, "keep", name, fd, &answer);
}

int keep_get(int holder, const char *name)
{
	int fd;

	if (!ask_name(holder, "fetch", name, -1, &answer))
		return -1;
	fd = answer.fd_count ? answer.fds[0] : -1;
	for (size_t i = 1; i < answer.fd_count; i++)
		close(answer.fds[i]);
	return fd;
}

void keep_drop(int holder, const char *name)
{
	ask_name(holder, "drop", name, -1, &answer);
}

bool keep_names(int holder, void (*each)(const char *name, void *user), void *user)
{
	static struct packet names;

	if (!ask_name(holder, "names", NULL, -1, &names))
		return false;
	for (const char *field = NULL; (field = answer_next(names.data, names.length, field));)
		if (!strncmp(field, "name=", 5))
			each(field + 5, user);
	return true;
}
