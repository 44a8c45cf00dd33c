/* Orders: what is meant, what is refused, and two hundred thousand mutations of good ones. */
#include "order.h"

#include <errno.h>

#include "check.h"
#include "meta.h"

static struct order order;
static struct refusal why;

/* A packet written with '\n' for NUL. */
static bool parse(const char *text, size_t fds)
{
	static char packet[1024];
	size_t length = strlen(text);

	memcpy(packet, text, length);
	for (size_t i = 0; i < length; i++)
		if (packet[i] == '\n')
			packet[i] = 0;
	return order_parse(packet, length, fds, &order, &why);
}

static void refused(const char *text, size_t fds, int code)
{
	CHECK(!parse(text, fds));
	CHECK(why.code == code);
	CHECK(why.message[0]);
}

static const char *const good[] = {
	"hello\nversion=1\n",
	"add\nid=m1\nsize=4096\n",
	"store\nid=m1\nnumber=1\naddress=127.0.0.1\nport=10809\nexport=m1-1-ab\nidentity=m1\npsk-file=/run/k\n",
	"unstore\nid=m1\nnumber=0\n",
	"map\nbase=4096\nlength=8192\n",
	"discard\nid=m1\noffset=0\nlength=4096\n",
	"stats\n",
};

static void mutations(void)
{
	uint64_t seed = 88172645463325252ULL;
	char packet[256];

	for (int i = 0; i < 200000; i++) {
		const char *from = good[seed % (sizeof good / sizeof *good)];
		size_t length = strlen(from);

		for (size_t n = 0; n < length; n++)
			packet[n] = from[n] == '\n' ? 0 : from[n];
		for (int n = 0; n < 3; n++) {
			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			packet[(seed >> 8) % length] = (char)(seed >> 40);
		}
		if (!(seed & 0x100000))
			length = (seed >> 24) % (length + 1);
		if (!order_parse(packet, length, seed >> 60, &order, &why))
			continue;
		if (order.id)
			CHECK(strlen(order.id) <= 32);
		if (order.address)
			CHECK(strlen(order.address) < sizeof(struct meta_store){0}.address);
		CHECK(order.length % PAGE_SIZE == 0 && order.size % PAGE_SIZE == 0);
	}
}

int main(void)
{
	CHECK(parse(good[0], 0) && order.verb == ORDER_HELLO && order.version == 1);
	CHECK(parse(good[1], 1) && order.size == PAGE_SIZE);
	CHECK_TEXT(order.id, "m1");
	CHECK(parse(good[2], 0) && order.port == 10809 && order.number == 1);
	CHECK_TEXT(order.psk_file, "/run/k");
	CHECK(parse(good[4], 2) && order.base == 4096 && order.length == 8192);
	refused("", 0, EINVAL);
	refused("hello\nversion=1", 0, EINVAL);
	refused("nonsense\n", 0, ENOSYS);
	refused("hello\n", 0, EINVAL);
	refused("hello\nversion=1\nversion=1\n", 0, EINVAL);
	refused("hello\nversion=1\nid=m1\n", 0, EINVAL);
	refused("hello\nversion\n", 0, EINVAL);
	refused("hello\nversion=-1\n", 0, EINVAL);
	refused("hello\nversion=99999999999999999999999\n", 0, EINVAL);
	refused("add\nid=m1\nsize=4096\n", 0, EBADF);
	refused("add\nid=m1\nsize=4097\n", 1, EINVAL);
	refused("add\nid=m1\nsize=0\n", 1, EINVAL);
	refused("add\nid=M.1\nsize=4096\n", 1, EINVAL);
	refused("add\nid=\nsize=4096\n", 1, EINVAL);
	refused("add\nid=a123456789a123456789a123456789abc\nsize=4096\n", 1, EINVAL);
	refused("unstore\nid=m1\nnumber=2\n", 0, EINVAL);
	refused("store\nid=m1\nnumber=0\naddress=a\nport=1\nexport=e\nidentity=m1\n", 0, EINVAL);
	refused("store\nid=m1\nnumber=0\naddress=a\nport=1\nexport=e\nidentity=m1\npsk-file=k\n", 0, EINVAL);
	refused("store\nid=m1\nnumber=0\naddress=a b\nport=1\nexport=e\n", 0, EINVAL);
	refused("map\nbase=4096\nlength=8192\n", 1, EBADF);
	mutations();
	return 0;
}
