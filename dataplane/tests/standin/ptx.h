/* Runs simple PTX on this host's CPU, for tests: one thread after the other, without shared memory and barriers.
 * PTX ISA: https://docs.nvidia.com/cuda/parallel-thread-execution/ */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PTX_PARAMETERS = 64, PTX_NAME = 512 };

struct ptx_kernel {
	char name[PTX_NAME];
	unsigned parameters;
	struct {
		char name[PTX_NAME];
		size_t offset, size;
	} parameter[PTX_PARAMETERS];
	size_t parameters_size;
	struct ptx_step *steps;
	unsigned count, registers;
};

struct ptx_variable {
	char name[PTX_NAME];
	size_t size;
	uint64_t *memory;
};

struct ptx_module {
	struct ptx_kernel *kernels;
	unsigned kernels_count;
	struct ptx_variable *variables;
	unsigned variables_count;
	char why[256]; /* it cannot be run */
};

/* Returns a module that is to be freed; with `why`, it is no PTX that can be run. */
struct ptx_module *ptx_load(const char *text);
void ptx_free(struct ptx_module *module);

enum ptx_outcome { PTX_GOOD, PTX_BAD_ADDRESS, PTX_TRAP };

/* Whether `size` bytes from `at` on may be touched. */
typedef bool ptx_may(uint64_t at, size_t size);

enum ptx_outcome ptx_run(const struct ptx_kernel *kernel, const uint8_t *parameters, const unsigned *grid,
			 const unsigned *block, ptx_may *may);
