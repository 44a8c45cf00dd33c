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

/* Send one packet, with a descriptor unless `fd` is -1. False: the peer is gone or does not read. */
bool packet_send(int socket, const struct reply *reply, int fd);

/* Receive one packet, whose descriptors are the caller's. Returns 1, 0 if there is none now, -1 at the end. */
int packet_receive(int socket, struct packet *packet);

/* Close the descriptors that nobody took. */
void packet_close_fds(struct packet *packet);

/* Whether the peer of a connected socket is root or runs as our own user. */
bool packet_peer_is_ours(int fd);
