#include "packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

bool packet_send(int socket, const struct reply *reply, int fd)
{
	struct iovec iov = {(void *)reply->data, reply->length};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = control.space;
		message.msg_controllen = sizeof control.space;
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(header), &fd, sizeof fd);
	}
	return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)reply->length;
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

bool packet_peer_is_ours(int fd)
{
	struct ucred peer;
	socklen_t length = sizeof peer;

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) && (!peer.uid || peer.uid == geteuid());
}
