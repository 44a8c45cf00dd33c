/* The socket: connections, requests, events. */
#pragma once

#include "holder.h"

/* Bind and listen at `path`. False with a message on stderr. */
bool server_open(struct holder *holder, const char *path);
void server_close(struct holder *holder);

/* Send a packet to every watcher. One that does not read its events is disconnected. */
void server_broadcast(struct holder *holder, const struct reply *event);
