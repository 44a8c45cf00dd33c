/* What the holder sends: a packet of NUL-terminated fields, built in place; and why it says no. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "bounds.h"

struct reply {
	size_t length;
	bool overflow;
	char data[PACKET_MAX];
};

/* Why a request is refused: an errno value and one line for people. */
struct refusal {
	int code;
	char message[256];
};

void reply_begin(struct reply *reply, const char *head);

/* Add one field. One that does not fit sets `overflow` and leaves the packet as it was. */
void reply_field(struct reply *reply, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Make the whole reply an error. */
void reply_refusal(struct reply *reply, const struct refusal *refusal);

/* Fill in a refusal; control characters, which may come from a client, become '?'. Always returns false. */
bool refuse(struct refusal *refusal, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
