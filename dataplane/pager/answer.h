/* Answers as they come from a socket: a packet of fields, each ended by NUL, that begins with "ok". Bytes that are not
 * so are no answer. Without allocation and without trust; the library in QEMU uses it too. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static inline bool answer_ok(const char *answer, size_t length)
{
	return length >= 3 && !memcmp(answer, "ok", 3) && !answer[length - 1];
}

/* The field after `field`, or the first one after "ok" for NULL; NULL at the end. Of an answer that is ok. */
static inline const char *answer_next(const char *answer, size_t length, const char *field)
{
	const char *next = field ? field + strlen(field) + 1 : answer + 3;

	return next < answer + length ? next : NULL;
}

/* The value of the first field with this key, or NULL. */
static inline const char *answer_value(const char *answer, size_t length, const char *key)
{
	size_t key_length = strlen(key);

	for (const char *field = NULL; (field = answer_next(answer, length, field));)
		if (!strncmp(field, key, key_length) && field[key_length] == '=')
			return field + key_length + 1;
	return NULL;
}
