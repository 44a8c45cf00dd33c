/* The lender's CUDA driver: the calls of libcuda.so.1 that are used, found at run time. */
#pragma once

#include <stdbool.h>

#include "generated/driver.h"

#define DRIVER_MEMBER(name, parameters) int(*name) parameters;

struct driver {
	DRIVER_CALLS(DRIVER_MEMBER)
};

/* A call that this driver is too old for answers CUDA_ERROR_NOT_SUPPORTED. Returns false with `why` if there is none. */
bool driver_load(struct driver *driver, const char *path, const char **why);
