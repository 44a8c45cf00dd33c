/* A CUDA program that is told what to do by lines, for tools/bench-gpu: cuda-calls LIBRARY
 *
 *   launch COUNT in   launch an almost empty kernel COUNT times in a stream, then wait for the stream
 *   h2d BYTES         copy to the device, and wait
 *   d2h BYTES         copy back
 *
 * Prints the device's name first, and for each line the seconds that it took.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "generated/api.h"

enum { LINE = 128, NAME = 256, STREAM_NON_BLOCKING = 1 };

static const char ptx[] = ".version 7.0\n.target sm_50\n.address_size 64\n"
			  ".visible .entry one(.param .u64 x)\n"
			  "{\n"
			  "  .reg .b32 %r<3>; .reg .b64 %rd<3>;\n"
			  "  ld.param.u64 %rd1, [x]; cvta.to.global.u64 %rd2, %rd1;\n"
			  "  ld.global.u32 %r1, [%rd2]; add.s32 %r2, %r1, 1; st.global.u32 [%rd2], %r2;\n"
			  "  ret;\n"
			  "}\n";

static void *library;
static uint64_t stream, kernel, numbers;
static __typeof__(cuLaunchKernel) *launch_kernel;
static __typeof__(cuStreamSynchronize) *wait_for_stream;

static void *find(const char *name)
{
	void *symbol = dlsym(library, name);

	if (symbol)
		return symbol;
	fprintf(stderr, "cuda-calls: no %s\n", name);
	exit(1);
}

static void good(const char *what, int code)
{
	if (!code)
		return;
	fprintf(stderr, "cuda-calls: %s: error %d\n", what, code);
	exit(1);
}

#define GOOD(name, ...) good(#name, ((__typeof__(name) *)find(#name))(__VA_ARGS__))

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static void launch(unsigned long count)
{
	size_t size = sizeof numbers;
	/* CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END: the driver of the tests takes parameters this way only. */
	void *extra[] = {(void *)1, &numbers, (void *)2, &size, NULL};

	for (unsigned long i = 0; i < count; i++)
		good("cuLaunchKernel", launch_kernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, NULL, extra));
	good("cuStreamSynchronize", wait_for_stream(stream));
}

static void set_up(const char *path)
{
	uint64_t context, module;
	char name[NAME] = "";
	int device = -1;

	library = dlopen(path, RTLD_NOW);
	if (!library) {
		fprintf(stderr, "cuda-calls: %s\n", dlerror());
		exit(1);
	}
	launch_kernel = (__typeof__(cuLaunchKernel) *)find("cuLaunchKernel");
	wait_for_stream = (__typeof__(cuStreamSynchronize) *)find("cuStreamSynchronize");
	GOOD(cuInit, 0);
	GOOD(cuDeviceGet, &device, 0);
	GOOD(cuDeviceGetName, name, sizeof name, device);
	GOOD(cuDevicePrimaryCtxRetain, &context, device);
	GOOD(cuCtxSetCurrent, context);
	GOOD(cuStreamCreate, &stream, STREAM_NON_BLOCKING);
	GOOD(cuModuleLoadDataEx, &module, ptx, 0, NULL, NULL);
	GOOD(cuModuleGetFunction, &kernel, module, "one");
	GOOD(cuMemAlloc_v2, &numbers, 64);
	GOOD(cuMemsetD8_v2, numbers, 0, 64);
	launch(10);
	printf("%s\n", name);
	fflush(stdout);
}

int main(int count, char **arguments)
{
	char line[LINE], what[16];
	unsigned char *bytes = NULL;
	unsigned long had = 0;
	uint64_t buffer = 0;

	if (count != 2)
		return 2;
	set_up(arguments[1]);
	while (fgets(line, sizeof line, stdin)) {
		unsigned long amount = 0;
		double began;

		if (sscanf(line, "%15s %lu", what, &amount) != 2)
			return 2;
		if (!strcmp(what, "launch")) {
			began = now();
			launch(amount);
		} else {
			if (had != amount) {
				if (buffer)
					GOOD(cuMemFree_v2, buffer);
				GOOD(cuMemAlloc_v2, &buffer, amount);
				free(bytes);
				bytes = malloc(amount);
				if (!bytes)
					return 1;
				memset(bytes, 0x5a, amount); /* touched, as a program's data is */
				had = amount;
			}
			began = now();
			if (!strcmp(what, "h2d"))
				GOOD(cuMemcpyHtoD_v2, buffer, bytes, amount);
			else
				GOOD(cuMemcpyDtoH_v2, bytes, buffer, amount);
		}
		printf("%.9f\n", now() - began);
		fflush(stdout);
	}
	return 0;
}
