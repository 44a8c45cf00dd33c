#include "message.h"

#include <errno.h>

#include "check.h"

static struct reply reply;

static void fields_end_in_nul(void)
{
	reply_begin(&reply, "ok");
	reply_field(&reply, "pid=%d", 42);
	CHECK(reply.length == 10);
	CHECK(!memcmp(reply.data, "ok\0pid=42\0", 10));
	CHECK(!reply.overflow);
}

static void what_does_not_fit_is_left_out_and_said(void)
{
	static char text[PACKET_MAX];
	size_t length;

	memset(text, 'x', sizeof text - 1);
	reply_begin(&reply, "ok");
	length = reply.length;
	reply_field(&reply, "%s", text);
	CHECK(reply.overflow);
	CHECK(reply.length == length);
	text[sizeof text - 4] = '\0';
	reply_begin(&reply, "ok");
	reply_field(&reply, "%s", text);
	CHECK(!reply.overflow);
	CHECK(reply.length == PACKET_MAX);
}

static void a_refusal_names_its_errno_and_is_printable(void)
{
	struct refusal why;

	CHECK(!refuse(&why, ENOENT, "no child '%s'", "a\nb\x7f\xc3\xa9"));
	CHECK_TEXT(why.message, "no child 'a?b?\xc3\xa9'");
	reply_refusal(&reply, &why);
	CHECK_TEXT(reply.data, "error");
	CHECK_TEXT(reply.data + 6, "errno=ENOENT");
	why.code = 99999;
	reply_refusal(&reply, &why);
	CHECK_TEXT(reply.data + 6, "errno=EIO");
}

int main(void)
{
	fields_end_in_nul();
	what_does_not_fit_is_left_out_and_said();
	a_refusal_names_its_errno_and_is_printable();
	return 0;
}
