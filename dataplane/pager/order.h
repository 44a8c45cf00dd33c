/* What clients ask of the pager: one packet parsed into one struct, without allocation and without trust. The packets
 * are those of the holder (docs/internals/pager-protocol.md). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "message.h"

enum order_verb {
	ORDER_HELLO,
	ORDER_ADD,
	ORDER_STORE,
	ORDER_UNSTORE,
	ORDER_MAP,
	ORDER_DISCARD,
	ORDER_UNMAP,
	ORDER_REMOVE,
	ORDER_CACHE,
	ORDER_LOSS,
	ORDER_COMPRESS,
	ORDER_HOME,
	ORDER_SAMPLE,
	ORDER_STATS,
	ORDER_VERBS,
};

/* Text points into the packet. What was not given is NULL or 0. */
struct order {
	enum order_verb verb;
	const char *id, *address, *export, *identity, *psk_file, *policy;
	uint64_t version, size, number, port, base, offset, length, on, gone, count;
};

/* Parse a packet that came with `fds` descriptors. On refusal returns false and says why. */
bool order_parse(char *packet, size_t length, size_t fds, struct order *order, struct refusal *why);
