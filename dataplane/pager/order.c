#include "order.h"

#include <errno.h>
#include <string.h>

#include "meta.h"

enum key { ID, ADDRESS, EXPORT, IDENTITY, PSK_FILE, POLICY, VERSION, SIZE, NUMBER, PORT, BASE, OFFSET, LENGTH, ON, GONE, COUNT, KEYS };

#define BIT(key) (1U << (key))
#define AT(member) offsetof(struct order, member)
#define FIELD(type, member) sizeof(((struct type *)0)->member)

/* Text is of at most `max` bytes; numbers are from `min` to `max` and of pages where `pages`. */
static const struct {
	const char *name;
	size_t offset;
	bool text, pages;
	uint64_t min, max;
} keys[KEYS] = {
	[ID] = {"id", AT(id), true, false, 1, 32},
	[ADDRESS] = {"address", AT(address), true, false, 1, FIELD(meta_store, address) - 1},
	[EXPORT] = {"export", AT(export), true, false, 1, FIELD(meta_store, export) - 1},
	[IDENTITY] = {"identity", AT(identity), true, false, 1, FIELD(meta_store, identity) - 1},
	[PSK_FILE] = {"psk-file", AT(psk_file), true, false, 1, FIELD(meta_store, psk_file) - 1},
	[POLICY] = {"policy", AT(policy), true, false, 1, 16},
	[VERSION] = {"version", AT(version), false, false, 0, UINT32_MAX},
	[SIZE] = {"size", AT(size), false, true, PAGE_SIZE, 1ULL << 39},
	[NUMBER] = {"number", AT(number), false, false, 0, META_STORES - 1},
	[PORT] = {"port", AT(port), false, false, 1, 65535},
	[BASE] = {"base", AT(base), false, true, PAGE_SIZE, 1ULL << 56},
	[OFFSET] = {"offset", AT(offset), false, true, 0, 1ULL << 39},
	[LENGTH] = {"length", AT(length), false, true, PAGE_SIZE, 1ULL << 39},
	[ON] = {"on", AT(on), false, false, 0, 1},
	[COUNT] = {"count", AT(count), false, false, 1, 1000},
	[GONE] = {"gone", AT(gone), false, false, 0, 1},
};

static const struct {
	const char *name;
	unsigned required, allowed;
	unsigned fds;
} verbs[ORDER_VERBS] = {
	[ORDER_HELLO] = {"hello", BIT(VERSION), 0, 0},
	[ORDER_ADD] = {"add", BIT(ID) | BIT(SIZE), 0, 1},
	[ORDER_STORE] = {"store", BIT(ID) | BIT(NUMBER) | BIT(ADDRESS) | BIT(PORT) | BIT(EXPORT),
			 BIT(IDENTITY) | BIT(PSK_FILE), 0},
	[ORDER_UNSTORE] = {"unstore", BIT(ID) | BIT(NUMBER), BIT(GONE), 0},
	[ORDER_MAP] = {"map", BIT(BASE) | BIT(LENGTH), 0, 2},
	[ORDER_DISCARD] = {"discard", BIT(ID) | BIT(OFFSET) | BIT(LENGTH), 0, 0},
	[ORDER_UNMAP] = {"unmap", BIT(ID), 0, 0},
	[ORDER_REMOVE] = {"remove", BIT(ID), 0, 0},
	[ORDER_CACHE] = {"cache", BIT(SIZE), 0, 0},
	[ORDER_LOSS] = {"loss", BIT(ID) | BIT(POLICY), 0, 0},
	[ORDER_COMPRESS] = {"compress", BIT(ID) | BIT(ON), 0, 0},
	[ORDER_HOME] = {"home", BIT(ID) | BIT(ON), 0, 0},
	[ORDER_SAMPLE] = {"sample", BIT(ID) | BIT(NUMBER) | BIT(COUNT), 0, 0},
	[ORDER_STATS] = {"stats", 0, 0, 0},
};

static bool text_valid(const char *text, enum key key)
{
	size_t length = strlen(text);

	if (length < keys[key].min || length > keys[key].max)
		return false;
	for (; *text; text++) {
		if ((unsigned char)*text < 0x21 || *text == 0x7f)
			return false;
		/* It becomes part of the names of kept descriptors. */
		if (key == ID && !strchr("abcdefghijklmnopqrstuvwxyz0123456789-", *text))
			return false;
	}
	return key != PSK_FILE || text[-(ptrdiff_t)length] == '/';
}

static bool number_valid(const char *text, enum key key, uint64_t *number)
{
	*number = 0;
	if (!*text)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || *number > (UINT64_MAX - 9) / 10)
			return false;
		*number = *number * 10 + (uint64_t)(*text - '0');
	}
	return *number >= keys[key].min && *number <= keys[key].max && (!keys[key].pages || !(*number % PAGE_SIZE));
}

static bool set(struct order *order, enum key key, const char *value, struct refusal *why)
{
	char *place = (char *)order + keys[key].offset;
	uint64_t number = 0;

	if (keys[key].text ? !text_valid(value, key) : !number_valid(value, key, &number))
		return refuse(why, EINVAL, "%s cannot be '%.64s'", keys[key].name, value);
	if (keys[key].text)
		memcpy(place, &value, sizeof value);
	else
		memcpy(place, &number, sizeof number);
	return true;
}

bool order_parse(char *packet, size_t length, size_t fds, struct order *order, struct refusal *why)
{
	unsigned seen = 0, missing;

	memset(order, 0, sizeof *order);
	if (!length || packet[length - 1])
		return refuse(why, EINVAL, "the packet does not end in NUL");
	while (order->verb < ORDER_VERBS && strcmp(packet, verbs[order->verb].name))
		order->verb++;
	if (order->verb == ORDER_VERBS)
		return refuse(why, ENOSYS, "unknown verb '%.32s'", packet);
	for (char *field = packet + strlen(packet) + 1; field < packet + length; field += strlen(field) + 1) {
		char *equals = strchr(field, '=');
		enum key key = 0;

		if (!equals)
			return refuse(why, EINVAL, "field '%.32s' is not key=value", field);
		while (key < KEYS && (strlen(keys[key].name) != (size_t)(equals - field) ||
				      memcmp(keys[key].name, field, (size_t)(equals - field))))
			key++;
		if (key == KEYS || !((verbs[order->verb].required | verbs[order->verb].allowed) & BIT(key)))
			return refuse(why, EINVAL, "%s knows no key '%.32s'", verbs[order->verb].name, field);
		if (seen & BIT(key))
			return refuse(why, EINVAL, "%s twice", keys[key].name);
		seen |= BIT(key);
		if (!set(order, key, equals + 1, why))
			return false;
	}
	missing = verbs[order->verb].required & ~seen;
	if (missing)
		return refuse(why, EINVAL, "%s needs %s", verbs[order->verb].name, keys[__builtin_ctz(missing)].name);
	if (fds != verbs[order->verb].fds)
		return refuse(why, EBADF, "%zu descriptors came where %u belong", fds, verbs[order->verb].fds);
	if (!order->identity != !order->psk_file)
		return refuse(why, EINVAL, "identity and psk-file go together");
	return true;
}
