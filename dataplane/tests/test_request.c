#include "request.h"

#include <errno.h>

#include "check.h"

static struct request request;
static struct refusal why;

/* Parse a literal; its closing NUL ends the last field. */
#define PARSE_FDS(text, fds)                                                                                           \
	({                                                                                                             \
		static char packet_[] = text;                                                                          \
		request_parse(packet_, sizeof packet_, fds, &request, &why);                                           \
	})
#define PARSE(text) PARSE_FDS(text, 0)
#define REFUSED(text, errno_, message_)                                                                                \
	do {                                                                                                           \
		CHECK(!PARSE(text));                                                                                   \
		CHECK_TEXT(why.message, message_);                                                                     \
		CHECK(why.code == (errno_));                                                                           \
	} while (0)

static void every_verb_with_its_keys(void)
{
	CHECK(PARSE("hello\0version=1") && request.verb == VERB_HELLO && request.version == 1);
	CHECK(PARSE("list") && request.verb == VERB_LIST);
	CHECK(PARSE("signal\0id=qemu\0sig=15") && request.verb == VERB_SIGNAL && request.sig == 15);
	CHECK(PARSE("stop\0grace-ms=0\0id=qemu") && request.verb == VERB_STOP && request.grace_ms == 0);
	CHECK(PARSE("forget\0id=qemu") && request.verb == VERB_FORGET);
	CHECK(PARSE_FDS("keep\0name=uffd.1", 1) && request.verb == VERB_KEEP);
	CHECK_TEXT(request.name, "uffd.1");
	CHECK(PARSE("fetch\0name=a") && request.verb == VERB_FETCH);
	CHECK(PARSE("drop\0name=a") && request.verb == VERB_DROP);
	CHECK(PARSE("names") && request.verb == VERB_NAMES);
	CHECK(PARSE("watch") && request.verb == VERB_WATCH);
	CHECK(PARSE("shutdown\0grace-ms=3600000") && request.verb == VERB_SHUTDOWN && request.grace_ms == 3600000);
}

static void a_whole_spawn(void)
{
	CHECK(PARSE_FDS("spawn\0id=nbd-1\0arg=/bin/x\0arg=\0arg=a=b c\0env=A=\0env=B=1=2\0cwd=/\0stdout=/o\0stderr=/e\0"
			"log-limit=4096\0fd=3\0fd=255\0restart=on-failure\0restart-max=0\0main=1\0cgroup=/sys/fs/cgroup/x",
			2));
	CHECK(request.argc == 3 && !request.argv[3]);
	CHECK_TEXT(request.argv[1], "");
	CHECK_TEXT(request.argv[2], "a=b c");
	CHECK(request.envc == 2 && !request.envp[2]);
	CHECK_TEXT(request.envp[1], "B=1=2");
	CHECK(request.targetc == 2 && request.targets[0] == 3 && request.targets[1] == 255);
	CHECK(request.restart == RESTART_ON_FAILURE && request.restart_max == 0 && request.main == 1);
	CHECK(request.log_limit == 4096);
	CHECK_TEXT(request.cwd, "/");
	CHECK_TEXT(request.stdout_log, "/o");
	CHECK_TEXT(request.stderr_log, "/e");
	CHECK_TEXT(request.cgroup, "/sys/fs/cgroup/x");
}

static void defaults(void)
{
	CHECK(PARSE("spawn\0id=a\0arg=/bin/x"));
	CHECK(request.log_limit == LOG_LIMIT_DEFAULT && request.restart_max == RESTART_MAX_DEFAULT);
	CHECK(request.restart == RESTART_NEVER && !request.main && !request.cwd && !request.stdout_log);
}

static void malformed_packets(void)
{
	static char open[] = {'l', 'i', 's', 't'};

	CHECK(!request_parse(open, sizeof open, 0, &request, &why));
	CHECK_TEXT(why.message, "the packet does not end in NUL");
	CHECK(!request_parse(open, 0, 0, &request, &why));
	REFUSED("", ENOSYS, "unknown verb ''");
	REFUSED("lis", ENOSYS, "unknown verb 'lis'");
	REFUSED("list ", ENOSYS, "unknown verb 'list '");
	REFUSED("\n\x1b[31m", ENOSYS, "unknown verb '??[31m'");
	REFUSED("list\0", EINVAL, "field '' is not key=value");
	REFUSED("list\0id", EINVAL, "field 'id' is not key=value");
	REFUSED("list\0id=a", EINVAL, "list knows no key 'id'");
	REFUSED("list\0=a", EINVAL, "list knows no key ''");
	REFUSED("hello\0version=1\0version=1", EINVAL, "version twice");
	REFUSED("hello", EINVAL, "hello needs version");
	REFUSED("spawn\0arg=x", EINVAL, "spawn needs id");
	REFUSED("spawn\0id=x", EINVAL, "spawn needs arg");
}

static void malformed_values(void)
{
	static const char *const bad_ids[] = {"", "A", "a b", "a/b", "\xc3\xa9", "a\n"};

	for (size_t i = 0; i < sizeof bad_ids / sizeof *bad_ids; i++)
		CHECK(!label_valid(bad_ids[i]));
	CHECK(label_valid("0123456789012345678901234567890123456789012345678901234567890123"));
	CHECK(!label_valid("01234567890123456789012345678901234567890123456789012345678901234"));
	REFUSED("signal\0id=a\0sig=0", EINVAL, "sig must be a number from 1 to 64");
	REFUSED("signal\0id=a\0sig=65", EINVAL, "sig must be a number from 1 to 64");
	REFUSED("signal\0id=a\0sig=-9", EINVAL, "sig must be a number from 1 to 64");
	REFUSED("signal\0id=a\0sig= 9", EINVAL, "sig must be a number from 1 to 64");
	REFUSED("signal\0id=a\0sig=18446744073709551625", EINVAL, "sig must be a number from 1 to 64");
	REFUSED("stop\0id=a\0grace-ms=", EINVAL, "grace-ms must be a number from 0 to 3600000");
	REFUSED("spawn\0id=a\0arg=", EINVAL, "the program's name is empty");
	REFUSED("spawn\0id=a\0arg=x\0env==1", EINVAL, "env must be NAME=VALUE");
	REFUSED("spawn\0id=a\0arg=x\0env=A", EINVAL, "env must be NAME=VALUE");
	REFUSED("spawn\0id=a\0arg=x\0cwd=tmp", EINVAL, "cwd must be an absolute path");
	REFUSED("spawn\0id=a\0arg=x\0stdout=", EINVAL, "stdout must be an absolute path");
	REFUSED("spawn\0id=a\0arg=x\0restart=always", EINVAL, "restart must be never or on-failure");
	REFUSED("spawn\0id=a\0arg=x\0main=2", EINVAL, "main must be a number from 0 to 1");
	REFUSED("spawn\0id=a\0arg=x\0fd=2", EINVAL, "fd must be 3 to 255");
	REFUSED("spawn\0id=a\0arg=x\0fd=256", EINVAL, "fd must be 3 to 255");
	REFUSED("spawn\0id=a\0arg=x\0fd=3\0fd=3", EINVAL, "fd=3 twice");
}

static void descriptors_must_be_as_many_as_told(void)
{
	CHECK(!PARSE_FDS("list", 1) && why.code == EBADF);
	CHECK(!PARSE_FDS("keep\0name=a", 0) && why.code == EBADF);
	CHECK(!PARSE_FDS("keep\0name=a", 2) && why.code == EBADF);
	CHECK(!PARSE_FDS("spawn\0id=a\0arg=x\0fd=3", 0) && why.code == EBADF);
	CHECK(!PARSE_FDS("spawn\0id=a\0arg=x", 1) && why.code == EBADF);
}

/* `count` times `field`, after the start of a spawn. */
static bool parse_many(const char *field, unsigned count)
{
	static char packet[PACKET_MAX];
	size_t length = sizeof "spawn\0id=a\0arg=x";

	memcpy(packet, "spawn\0id=a\0arg=x", length);
	for (unsigned i = 0; i < count; i++) {
		CHECK(length + strlen(field) + 1 <= sizeof packet);
		memcpy(packet + length, field, strlen(field) + 1);
		length += strlen(field) + 1;
	}
	return request_parse(packet, length, 0, &request, &why);
}

static void lists_are_bounded(void)
{
	CHECK(parse_many("arg=", ARGS_MAX - 1));
	CHECK(request.argc == ARGS_MAX && !request.argv[ARGS_MAX]);
	CHECK(!parse_many("arg=", ARGS_MAX) && why.code == E2BIG);
	CHECK(parse_many("env=A=", ENV_MAX));
	CHECK(request.envc == ENV_MAX && !request.envp[ENV_MAX]);
	CHECK(!parse_many("env=A=", ENV_MAX + 1) && why.code == E2BIG);
}

int main(void)
{
	every_verb_with_its_keys();
	a_whole_spawn();
	defaults();
	malformed_packets();
	malformed_values();
	descriptors_must_be_as_many_as_told();
	lists_are_bounded();
	return 0;
}
