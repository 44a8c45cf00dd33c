#include "packet.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"

bool packet_write(int socket, const void *data, size_t length, const int *fds, size_t fd_count, int flags)
{
	struct iovec iov = {(void *)data, length};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd_count) {
		struct cmsghdr *header;

		message.msg_control = control.space;
		message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
	}
	return sendmsg(socket, &message, flags | MSG_NOSIGNAL) == (ssize_t)length;
}

bool packet_send(int socket, const struct reply *reply, int fd)
{
	return packet_write(socket, reply->data, reply->length, &fd, fd >= 0, MSG_DONTWAIT);
}

/* Take the descriptors out of a received message. More than fit are cut off by the kernel, which says so. */
static void collect_fds(struct msghdr *message, struct packet *packet)
{
	packet->fd_count = 0;
	for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
		size_t bytes = header->cmsg_len - CMSG_LEN(0);

		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(packet->fds + packet->fd_count, CMSG_DATA(header), bytes);
		packet->fd_count += bytes / sizeof(int);
	}
	packet->too_many_fds = message->msg_flags & MSG_CTRUNC;
	if (packet->too_many_fds)
		packet_close_fds(packet);
}

int packet_receive(int socket, struct packet *packet)
{
	struct iovec iov = {packet->data, sizeof packet->data};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control;
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
	ssize_t length = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (length < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -1;
	packet->length = (size_t)length;
	packet->too_long = message.msg_flags & MSG_TRUNC;
	collect_fds(&message, packet);
	if (length)
		return 1;
	/* An empty packet cannot be told from the end. */
	packet_close_fds(packet);
	return -1;
}

void packet_close_fds(struct packet *packet)
{
	while (packet->fd_count)
		close(packet->fds[--packet->fd_count]);
}

static bool peer_is_ours(int fd)
{
	struct ucred peer;
	socklen_t length = sizeof peer;

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) && (!peer.uid || peer.uid == geteuid());
}

int packet_accept(int listener, int *spare)
{
	AUTO_CLOSE int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0 && (errno == EMFILE || errno == ENFILE) && *spare >= 0) {
		/* Out of descriptors: hang up on the peer, or the listener would be ready for ever. */
		close(take_fd(spare));
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			close(take_fd(&fd));
		*spare = packet_spare();
	}
	return fd < 0 || !peer_is_ours(fd) ? -1 : take_fd(&fd);
}

int packet_spare(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}
