/* What the pager reads from sockets: orders, and the holder's answers, and what the library in QEMU reads, the pager's
 * answers. The first byte says how many descriptors came along, the rest is the packet. */
#include "order.h"

#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "input.h"
#include "meta.h"

static void must(bool condition)
{
	if (!condition)
		abort();
}

/* Text that the parser hands out lies inside the packet, and fits where it is to go. */
static void inside(const char *text, const char *packet, size_t length, size_t max)
{
	must(!text || (text > packet && text + strlen(text) < packet + length));
	must(!text || (*text && strlen(text) < max));
}

static void as_order(char *packet, size_t length, size_t fds)
{
	static struct order order, again;
	struct refusal why;

	if (!order_parse(packet, length, fds, &order, &why)) {
		must(why.code > 0 && memchr(why.message, '\0', sizeof why.message));
		return;
	}
	inside(order.id, packet, length, 33);
	inside(order.address, packet, length, sizeof((struct meta_store *)0)->address);
	inside(order.export, packet, length, sizeof((struct meta_store *)0)->export);
	inside(order.identity, packet, length, sizeof((struct meta_store *)0)->identity);
	inside(order.psk_file, packet, length, sizeof((struct meta_store *)0)->psk_file);
	must(order.number < META_STORES && order.on <= 1 && order.gone <= 1 && order.count <= 1000);
	must(!((order.size | order.base | order.offset | order.length) % PAGE_SIZE));
	/* No sum of two of them overflows. */
	must(order.offset <= 1ULL << 39 && order.length <= 1ULL << 39 && order.base <= 1ULL << 56);
	must(order_parse(packet, length, fds, &again, &why) && !memcmp(&order, &again, sizeof order));
}

static void as_answer(const char *packet, size_t length)
{
	unsigned fields = 0;
	const char *id;

	if (!answer_ok(packet, length))
		return;
	for (const char *field = NULL; (field = answer_next(packet, length, field)); fields++)
		must(field > packet && field + strlen(field) < packet + length);
	must(fields <= length);
	id = answer_value(packet, length, "id");
	must(!id || (id > packet && id + strlen(id) < packet + length));
}

int fuzz_input(const uint8_t *data, size_t size)
{
	/* Exactly as large as the input, so that a sanitizer sees a read beyond it. */
	size_t length = size ? size - 1 : 0;
	char *packet = malloc(length ? length : 1);

	if (size && packet) {
		memcpy(packet, data + 1, length);
		as_answer(packet, length);
		as_order(packet, length, data[0]);
	}
	free(packet);
	return 0;
}
