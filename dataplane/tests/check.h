/* The smallest test harness: a failed check says where and ends the program. */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition);          \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#define CHECK_TEXT(actual, expected)                                                                                   \
	do {                                                                                                           \
		const char *actual_ = (actual);                                                                        \
		if (strcmp(actual_, (expected))) {                                                                     \
			fprintf(stderr, "%s:%d: %s: got '%s', expected '%s'\n", __FILE__, __LINE__, __func__, actual_, \
				(expected));                                                                           \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)
