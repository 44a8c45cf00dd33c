/* The socket: connections, requests, events. */
#pragma once

#include "holder.h"

/* The holder's exit status where another holder serves the folder. */
#define EXIT_TAKEN 3

/* Bind and listen at `path`. Returns 0, or an exit status with a message on stderr. */
int server_open(struct holder *holder, const char *path);
void server_close(struct holder *holder);

/* Send a packet to every watcher. One that does not read its events is disconnected. */
void server_broadcast(struct holder *holder, const struct reply *event);
