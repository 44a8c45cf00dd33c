/* Every call that cuda.h has, for cuGetProcAddress. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "client.h"

struct symbol {
	const char *name; /* as programs ask for it */
	int version;	  /* of CUDA from which on this is what it means */
	bool per_thread;  /* it means a thread's own default stream */
	void *call;
};

/* Sorted by name and version. */
extern const struct symbol symbols[];
extern const size_t symbols_count;

#define UNSUPPORTED(name)                                                                                              \
	__attribute__((visibility("default"))) int name(void);                                                         \
	int name(void)                                                                                                 \
	{                                                                                                              \
		return unsupported(#name);                                                                             \
	}
