/* A CUDA program as a guest has it: it loads libcuda.so.1 by name (or the path that is given), computes, and checks.
 *
 *     cuda-program [--library PATH] [vadd|errors|large|threads|bad-address|endless|crash|forever]...
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"
#include "generated/api.h"

enum { COUNT = 1 << 12, BLOCK = 256, THREADS = 4, ROUNDS = 100 };

static const char ptx[] =
	".version 7.0\n.target sm_50\n.address_size 64\n"
	".visible .global .align 4 .u32 answer;\n"
	".visible .entry vadd(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)\n"
	"{\n"
	"  .reg .pred %p<2>; .reg .b32 %r<6>; .reg .f32 %f<4>; .reg .b64 %rd<11>;\n"
	"  ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u32 %r2, [n];\n"
	"  mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mov.u32 %r5, %tid.x;\n"
	"  mad.lo.s32 %r1, %r3, %r4, %r5;\n"
	"  setp.ge.s32 %p1, %r1, %r2;\n"
	"  @%p1 bra $done;\n"
	"  cvta.to.global.u64 %rd4, %rd1; mul.wide.s32 %rd5, %r1, 4; add.s64 %rd6, %rd4, %rd5;\n"
	"  ld.global.f32 %f1, [%rd6];\n"
	"  cvta.to.global.u64 %rd7, %rd2; add.s64 %rd8, %rd7, %rd5; ld.global.f32 %f2, [%rd8];\n"
	"  add.f32 %f3, %f1, %f2;\n"
	"  cvta.to.global.u64 %rd9, %rd3; add.s64 %rd10, %rd9, %rd5; st.global.f32 [%rd10], %f3;\n"
	"$done:\n"
	"  ret;\n"
	"}\n"
	".visible .entry wild(.param .u64 a) {\n"
	"  .reg .b64 %rd<2>; mov.u64 %rd1, 64; st.global.u64 [%rd1], %rd1; ret;\n"
	"}\n"
	".visible .entry endless() {\n"
	"$again: bra $again;\n"
	"}\n"
	".visible .entry vmcoal_refused() { ret; }\n"
	".visible .entry vmcoal_crash() { ret; }\n";

static void *library;
static uint64_t context;

static void *find(const char *name)
{
	void *symbol = dlsym(library, name);

	if (!symbol) {
		fprintf(stderr, "no %s\n", name);
		exit(1);
	}
	return symbol;
}

#define CU(name) ((__typeof__(name) *)find(#name))

static void good(const char *what, int result)
{
	const char *name = "?";

	if (!result)
		return;
	CU(cuGetErrorName)(result, &name);
	printf("%s: %s\n", what, name);
	fflush(stdout);
	exit(1);
}

#define GOOD(name, ...) good(#name, CU(name)(__VA_ARGS__))

static void expect(const char *what, int result, int expected)
{
	if (result == expected)
		return;
	printf("%s: %d, not %d\n", what, result, expected);
	exit(1);
}

#define EXPECT(expected, name, ...) expect(#name, CU(name)(__VA_ARGS__), expected)

static uint64_t function_of(uint64_t module, const char *name)
{
	uint64_t function = 0;

	GOOD(cuModuleGetFunction, &function, module, name);
	return function;
}

static void start(void)
{
	int count = 0, device = -1, major = 0;
	char name[64] = "";
	size_t memory = 0;

	GOOD(cuInit, 0);
	GOOD(cuDeviceGetCount, &count);
	GOOD(cuDeviceGet, &device, 0);
	GOOD(cuDeviceGetName, name, sizeof name, device);
	GOOD(cuDeviceTotalMem_v2, &memory, device);
	GOOD(cuDeviceGetAttribute, &major, 75, device);
	GOOD(cuDevicePrimaryCtxRetain, &context, device);
	GOOD(cuCtxSetCurrent, context);
	printf("%d: %s, %zu MiB, %d.x\n", count, name, memory >> 20, major);
	fflush(stdout);
}

static bool vadd(uint64_t stream)
{
	float *a = malloc(COUNT * sizeof *a), *b = malloc(COUNT * sizeof *b), *c = calloc(COUNT, sizeof *c);
	uint64_t module, da, db, dc, begin, end;
	unsigned n = COUNT;
	float ms = -1;
	bool right = true;

	for (int i = 0; i < COUNT; i++) {
		a[i] = (float)i;
		b[i] = 2.0F * (float)i;
	}
	GOOD(cuModuleLoadData, &module, ptx);
	GOOD(cuMemAlloc_v2, &da, COUNT * sizeof *a);
	GOOD(cuMemAlloc_v2, &db, COUNT * sizeof *b);
	GOOD(cuMemAlloc_v2, &dc, COUNT * sizeof *c);
	GOOD(cuEventCreate, &begin, 0);
	GOOD(cuEventCreate, &end, 0);
	GOOD(cuMemcpyHtoDAsync_v2, da, a, COUNT * sizeof *a, stream);
	GOOD(cuMemcpyHtoD_v2, db, b, COUNT * sizeof *b);
	GOOD(cuMemsetD32Async, dc, 0, COUNT, stream);
	GOOD(cuEventRecord, begin, stream);
	void *parameters[] = {&da, &db, &dc, &n};
	GOOD(cuLaunchKernel, function_of(module, "vadd"), COUNT / BLOCK, 1, 1, BLOCK, 1, 1, 0, stream, parameters, NULL);
	GOOD(cuEventRecord, end, stream);
	GOOD(cuMemcpyDtoHAsync_v2, c, dc, COUNT * sizeof *c, stream);
	GOOD(cuStreamSynchronize, stream);
	GOOD(cuEventElapsedTime, &ms, begin, end);
	for (int i = 0; i < COUNT; i++)
		right = right && c[i] == 3.0F * (float)i;
	right = right && ms >= 0;
	GOOD(cuMemFree_v2, da);
	GOOD(cuMemFree_v2, db);
	GOOD(cuMemFree_v2, dc);
	GOOD(cuEventDestroy_v2, begin);
	GOOD(cuEventDestroy_v2, end);
	GOOD(cuModuleUnload, module);
	free(a);
	free(b);
	free(c);
	return right;
}

/* Everything that can be asked of one context, and what is wrong about it. */
static void errors(void)
{
	uint64_t module, device, other, stream, where, function, base;
	char log[256] = "";
	int option[] = {5, 6}, blocks = 0, grid = 0, block = 0, version = 0, status = -1;
	void *value[] = {log, (void *)sizeof log}, *call = NULL, *pinned;
	size_t size = 0, free_before, free_after, total, offset = 1;
	static const char no_elf[64] = "\177ELF";
	const char *name = NULL;
	unsigned answer = 7, n = 0;
	uint8_t back[64], rows[8][16];

	GOOD(cuDriverGetVersion, &version);
	EXPECT(218, cuModuleLoadDataEx, &module, ".version 7.0\n.target sm_50\n.entry x() { what.u32 %r1; }", 2, option, value);
	if (!strstr(log, "unknown instruction: what"))
		good("the log is not there", 1);
	EXPECT(CU_INVALID_IMAGE, cuModuleLoadData, &module, no_elf);
	GOOD(cuModuleLoadData, &module, ptx);
	EXPECT(CU_NOT_FOUND, cuModuleGetFunction, &function, module, "nothing");
	EXPECT(CU_INVALID_HANDLE, cuModuleGetFunction, &function, module + 1, "vadd");
	function = function_of(module, "vadd");
	GOOD(cuFuncGetName, &name, function);
	expect(name, strcmp(name, "vadd"), 0);
	GOOD(cuFuncGetParamInfo, function, 3, &offset, &size);
	expect("offset", (int)offset, 24);
	GOOD(cuModuleGetGlobal_v2, &where, &size, module, "answer");
	GOOD(cuMemcpyHtoD_v2, where, &answer, sizeof answer);
	answer = 0;
	GOOD(cuMemcpyDtoH_v2, &answer, where, sizeof answer);
	expect("answer", (int)answer, 7);
	GOOD(cuOccupancyMaxActiveBlocksPerMultiprocessor, &blocks, function, 256, 0);
	GOOD(cuOccupancyMaxPotentialBlockSize, &grid, &block, function, NULL, 0, 0);
	expect("blocks", blocks * 256, 2 * block);

	/* Memory */
	GOOD(cuMemGetInfo_v2, &free_before, &total);
	EXPECT(CU_OUT_OF_MEMORY, cuMemAlloc_v2, &device, (size_t)1 << 40);
	GOOD(cuMemAlloc_v2, &device, 4096);
	GOOD(cuMemAllocAsync, &other, 4096, 0);
	GOOD(cuMemGetInfo_v2, &free_after, &total);
	expect("free memory", (int)(free_before - free_after), 8192);
	GOOD(cuMemGetAddressRange_v2, &base, &size, device + 5);
	expect("range", base == device && size == 4096, 1);
	EXPECT(CU_INVALID_VALUE, cuMemcpyHtoD_v2, device + 4090, ptx, 7);
	EXPECT(CU_INVALID_VALUE, cuMemcpyHtoD_v2, (uintptr_t)back, ptx, 7);
	EXPECT(CU_INVALID_VALUE, cuMemFree_v2, device + 1);
	GOOD(cuMemsetD8_v2, device, 0x5a, 4096);
	GOOD(cuMemcpyDtoD_v2, other, device, 4096);
	GOOD(cuMemcpyDtoH_v2, back, other + 4000, 64);
	expect("copied", back[63], 0x5a);
	GOOD(cuMemsetD2D8_v2, device, 64, 1, 16, 8);
	struct {
		size_t from_x, from_y;
		unsigned from_type;
		const void *from_host;
		uint64_t from_device, from_array;
		size_t from_pitch, to_x, to_y;
		unsigned to_type;
		void *to_host;
		uint64_t to_device, to_array;
		size_t to_pitch, width, height;
	} rectangle = {.from_type = 2, .from_device = device, .from_pitch = 64, .to_type = 1, .to_host = rows, .to_pitch = 16,
		       .width = 16, .height = 8};
	GOOD(cuMemcpy2D_v2, &rectangle);
	expect("rows", rows[0][0] + rows[7][15], 2);
	/* Nobody waits for it, so it is told by whoever waits next; and only once. */
	GOOD(cuMemcpyDtoD_v2, other, device + 4000, 1000);
	EXPECT(CU_INVALID_VALUE, cuCtxSynchronize);
	GOOD(cuCtxSynchronize);
	GOOD(cuMemHostAlloc, &pinned, 8192, 0);
	memset(pinned, 1, 8192);
	GOOD(cuMemcpyHtoDAsync_v2, device, pinned, 4096, 0);
	GOOD(cuMemcpyDtoHAsync_v2, (char *)pinned + 4096, device, 4096, 0);
	GOOD(cuStreamSynchronize, 0);
	expect("pinned", memcmp(pinned, (char *)pinned + 4096, 4096), 0);
	GOOD(cuMemFreeHost, pinned);
	GOOD(cuMemFree_v2, device);
	GOOD(cuMemFreeAsync, other, 0);
	EXPECT(CU_INVALID_VALUE, cuMemFree_v2, device);
	GOOD(cuMemGetInfo_v2, &free_after, &total);
	expect("all is free again", (int)(free_before - free_after), 0);

	/* Launches */
	EXPECT(CU_INVALID_VALUE, cuLaunchKernel, function, 1, 1, 1, 2048, 1, 1, 0, 0, NULL, NULL);
	EXPECT(CU_INVALID_VALUE, cuLaunchKernel, function, 0, 1, 1, 1, 1, 1, 0, 0, NULL, NULL);
	GOOD(cuLaunchKernel, function_of(module, "vmcoal_refused"), 1, 1, 1, 1, 1, 1, 0, 0, NULL, NULL);
	EXPECT(701, cuStreamSynchronize, 0);
	GOOD(cuStreamSynchronize, 0);
	uint64_t nothing = 0;
	size_t bytes = 28;
	uint8_t packed[32] = {0};
	memcpy(packed, &nothing, 8);
	memcpy(packed + 24, &n, 4);
	void *extra[] = {(void *)1, packed, (void *)2, &bytes, NULL};
	GOOD(cuLaunchKernel, function, 1, 1, 1, 1, 1, 1, 0, 0, NULL, extra);
	GOOD(cuStreamCreate, &stream, 1);
	EXPECT(CU_INVALID_HANDLE, cuEventSynchronize, stream);
	GOOD(cuStreamSynchronize, stream);
	GOOD(cuStreamDestroy_v2, stream);
	EXPECT(CU_INVALID_HANDLE, cuStreamSynchronize, stream);

	/* Contexts */
	GOOD(cuCtxCreate_v2, &other, 0, 0);
	GOOD(cuMemAlloc_v2, &device, 1 << 20);
	GOOD(cuCtxDestroy_v2, other);
	GOOD(cuCtxPushCurrent_v2, other);
	EXPECT(CU_CONTEXT_IS_DESTROYED, cuCtxSynchronize);
	GOOD(cuCtxPopCurrent_v2, &other);
	GOOD(cuMemGetInfo_v2, &free_after, &total);
	expect("its memory is free again", (int)(free_before - free_after), 0);
	GOOD(cuCtxSetCurrent, 0);
	EXPECT(CU_INVALID_CONTEXT, cuCtxSynchronize);
	GOOD(cuCtxSetCurrent, context);

	/* What is not there */
	GOOD(cuGetProcAddress_v2, "cuMemAlloc", &call, 12000, 0, &status);
	expect("cuMemAlloc", call == find("cuMemAlloc_v2") && !status, 1);
	GOOD(cuGetProcAddress_v2, "cuStreamSynchronize", &call, 12000, 2, &status);
	expect("per thread", call == find("cuStreamSynchronize_ptsz"), 1);
	GOOD(cuGetProcAddress_v2, "cuMemAllocAsync", &call, 11000, 0, &status);
	expect("too old", !call && status == 2, 1);
	EXPECT(CU_NOT_FOUND, cuGetProcAddress, "cuNothing", &call, 12000, 0);
	GOOD(cuGetProcAddress_v2, "cuMemCreate", &call, 12000, 0, &status);
	expect("not supported", ((int (*)(void))call)(), CU_NOT_SUPPORTED);
	EXPECT(CU_INVALID_VALUE, cuGetErrorName, 12345, &name);
	GOOD(cuGetErrorString, 700, &name);
	puts("right");
}

/* A fault in a kernel: everything fails from then on, with its error. */
static void bad_address(void)
{
	uint64_t module, nothing = 0;
	void *parameters[] = {&nothing};

	GOOD(cuModuleLoadData, &module, ptx);
	GOOD(cuLaunchKernel, function_of(module, "wild"), 1, 1, 1, 1, 1, 1, 0, 0, parameters, NULL);
	EXPECT(700, cuCtxSynchronize);
	EXPECT(700, cuMemAlloc_v2, &module, 4096);
	puts("right");
}

static void launch(const char *name)
{
	uint64_t module;

	GOOD(cuModuleLoadData, &module, ptx);
	GOOD(cuLaunchKernel, function_of(module, name), 1, 1, 1, 1, 1, 1, 0, 0, NULL, NULL);
	puts("launched");
	fflush(stdout);
	GOOD(cuCtxSynchronize);
}

static void *one_thread(void *right)
{
	uint64_t stream;
	bool *all = right;

	good("cuCtxSetCurrent", CU(cuCtxSetCurrent)(context));
	good("cuStreamCreate", CU(cuStreamCreate)(&stream, 1));
	for (int i = 0; i < 10; i++)
		*all = *all && vadd(stream);
	good("cuStreamDestroy", CU(cuStreamDestroy_v2)(stream));
	return NULL;
}

static void threads(void)
{
	pthread_t thread[THREADS];
	bool right[THREADS];

	for (int i = 0; i < THREADS; i++) {
		right[i] = true;
		pthread_create(&thread[i], NULL, one_thread, &right[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		expect("thread", right[i], true);
	}
	puts("right");
}

/* More than any buffer on the way holds, there and back. */
static void large(void)
{
	enum { SIZE = 24 << 20 };
	uint8_t *data = malloc(SIZE), *back = malloc(SIZE);
	uint64_t device;
	void *pinned;

	for (size_t i = 0; i < SIZE; i++)
		data[i] = (uint8_t)(i * 31 + (i >> 12));
	GOOD(cuMemAlloc_v2, &device, SIZE);
	GOOD(cuMemcpyHtoD_v2, device, data, SIZE);
	GOOD(cuMemcpyDtoH_v2, back, device, SIZE);
	expect("copied", memcmp(data, back, SIZE), 0);
	/* Answers that nobody waits for yet must not stand in the way of what is sent. */
	GOOD(cuMemHostAlloc, &pinned, SIZE, 0);
	GOOD(cuMemcpyDtoHAsync_v2, pinned, device, SIZE, 0);
	GOOD(cuMemcpyHtoDAsync_v2, device, data, SIZE, 0);
	GOOD(cuMemcpyDtoHAsync_v2, pinned, device, SIZE, 0);
	GOOD(cuCtxSynchronize);
	expect("pinned", memcmp(data, pinned, SIZE), 0);
	GOOD(cuMemFreeHost, pinned);
	free(data);
	free(back);
	puts("right");
}

int main(int argc, char **argv)
{
	const char *path = "libcuda.so.1";
	int first = 1;

	if (argc > 2 && !strcmp(argv[1], "--library")) {
		path = argv[2];
		first = 3;
	}
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	start();
	for (int i = first; i < argc; i++) {
		if (!strcmp(argv[i], "vadd"))
			puts(vadd(0) ? "right" : "wrong");
		else if (!strcmp(argv[i], "errors"))
			errors();
		else if (!strcmp(argv[i], "bad-address"))
			bad_address();
		else if (!strcmp(argv[i], "endless"))
			launch("endless");
		else if (!strcmp(argv[i], "crash"))
			launch("vmcoal_crash");
		else if (!strcmp(argv[i], "threads"))
			threads();
		else if (!strcmp(argv[i], "large"))
			large();
		else if (!strcmp(argv[i], "forever"))
			while (vadd(0))
				;
		else
			return 2;
		fflush(stdout);
	}
	return 0;
}
