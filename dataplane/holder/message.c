#include "message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void reply_begin(struct reply *reply, const char *head)
{
	reply->length = 0;
	reply->overflow = false;
	reply_field(reply, "%s", head);
}

void reply_field(struct reply *reply, const char *format, ...)
{
	size_t room = sizeof reply->data - reply->length;
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(reply->data + reply->length, room, format, args);
	va_end(args);
	if (length < 0 || (size_t)length >= room)
		reply->overflow = true;
	else
		reply->length += (size_t)length + 1;
}

void reply_refusal(struct reply *reply, const struct refusal *refusal)
{
	const char *name = strerrorname_np(refusal->code);

	reply_begin(reply, "error");
	reply_field(reply, "errno=%s", name ? name : "EIO");
	reply_field(reply, "message=%s", refusal->message);
}

bool refuse(struct refusal *refusal, int code, const char *format, ...)
{
	va_list args;

	refusal->code = code;
	va_start(args, format);
	vsnprintf(refusal->message, sizeof refusal->message, format, args);
	va_end(args);
	for (char *at = refusal->message; *at; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?';
	return false;
}
