/* The lender's end: takes the borrower's connection and connects its streams to the GPU server's Unix sockets. */
#pragma once

#include "tls.h"

/* Serve until the process is ended. `listener` is a listening TCP socket; `services` are the paths of the server's
 * sockets. Returns only without memory, -1 with errno. */
int serve(int listener, const struct key *key, const char *const *services, int silence);
