/* Packets on a seqpacket socket, with the descriptors that travel along. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "bounds.h"
#include "message.h"

struct packet {
	size_t length;
	bool too_long;	   /* the rest of it is lost */
	bool too_many_fds; /* or no room for them; all are closed */
	size_t fd_count;
	int fds[FDS_MAX];
	char data[PACKET_MAX];
};

/* Send one packet of `length` bytes, with `fd_count` descriptors (FDS_MAX at most); `flags` as of sendmsg(2). False: the
 * peer is gone, or does not read where MSG_DONTWAIT is given. */
bool packet_write(int socket, const void *data, size_t length, const int *fds, size_t fd_count, int flags);

/* Send one packet, with a descriptor unless `fd` is -1. False: the peer is gone or does not read. */
bool packet_send(int socket, const struct reply *reply, int fd);

/* Receive one packet, whose descriptors are the caller's. Returns 1, 0 if there is none now, -1 at the end. */
int packet_receive(int socket, struct packet *packet);

/* Close the descriptors that nobody took. */
void packet_close_fds(struct packet *packet);

/* Accept a connection whose peer is root or runs as our own user; -1 if there is none. `spare` is a descriptor of
 * packet_spare(), given up for a moment to refuse a connection when descriptors run out. */
int packet_accept(int listener, int *spare);

int packet_spare(void);
