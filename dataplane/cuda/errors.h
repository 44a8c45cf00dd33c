/* The codes of the CUDA driver API (CUresult) that this project's own code answers with, and the names of all. */
#pragma once

#include <stddef.h>

enum {
	CU_SUCCESS = 0,
	CU_INVALID_VALUE = 1,
	CU_OUT_OF_MEMORY = 2,
	CU_NOT_INITIALIZED = 3,
	CU_DEVICE_UNAVAILABLE = 46,
	CU_NO_DEVICE = 100,
	CU_INVALID_DEVICE = 101,
	CU_INVALID_IMAGE = 200,
	CU_INVALID_CONTEXT = 201,
	CU_FILE_NOT_FOUND = 301,
	CU_INVALID_HANDLE = 400,
	CU_NOT_FOUND = 500,
	CU_NOT_READY = 600,
	CU_CONTEXT_IS_DESTROYED = 709,
	CU_HOST_MEMORY_ALREADY_REGISTERED = 712,
	CU_HOST_MEMORY_NOT_REGISTERED = 713,
	CU_NOT_PERMITTED = 800,
	CU_NOT_SUPPORTED = 801,
	CU_UNKNOWN = 999,
};

struct cuda_error {
	int code;
	const char *name, *text;
};

extern const struct cuda_error cuda_errors[];
extern const size_t cuda_errors_count;

/* NULL where there is no such code. */
const struct cuda_error *cuda_error_of(int code);
