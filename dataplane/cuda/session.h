/* One client of a lender's GPU: its requests are taken from a socket one after the other, in a process of its own. */
#pragma once

#include "account.h"
#include "driver.h"
#include "generated/ops.h"
#include "table.h"
#include "wire.h"

struct session {
	const struct driver *driver;
	struct account *account;
	struct client *client;
	int device;	     /* the driver's number of the one GPU that is lent */
	bool greeted;
	struct table table;
	uint64_t context;    /* of the request that is served; 0: none */
	uint64_t current;    /* the one that the driver has been told; 0: none */
	uint64_t unanswered_ns; /* what the requests since the last answer took */
	struct writer spare; /* for what is copied on its way */
};

/* What a request means for the connection, besides a CUresult: it ends. */
enum { MALFORMED = -1 };

void session_init(struct session *session, const struct driver *driver, struct account *account, struct client *client,
		  int device);
void session_free(struct session *session);

/* Serve one request, the last of which has come. The answer is in `out`. Returns false where the request cannot
 * have come from our client: the connection is to be ended. */
bool session_serve(struct session *session, const struct request *request, const uint8_t *body, struct writer *out,
		   struct answer *answer);

/* The longest body that a request of this kind may have. */
uint32_t session_body_max(unsigned op);

/* Serve until the client is gone or breaks the protocol. `fd` is a connected stream socket. */
void session_run(struct session *session, int fd);
