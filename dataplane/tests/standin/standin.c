/* A CUDA driver for tests, as a lender would have: libcuda.so.1's calls over this host's memory and CPU. It runs simple
 * PTX (ptx.c), checks what it is given, and fails as CUDA does: a bad address in a kernel spoils the process for good.
 *
 * Kernels by these names do something else than their code says: `vmcoal_crash` ends the process, `vmcoal_refused` cannot
 * be launched.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "errors.h"
#include "generated/driver.h"
#include "ptx.h"

enum {
	OBJECTS = 4096,
	ALLOCATIONS = 4096,
	MEMORY = 256 * 1024 * 1024,
	VERSION = 12090,
	ILLEGAL_ADDRESS = 700,
	LAUNCH_OUT_OF_RESOURCES = 701,
	LAUNCH_FAILED = 719,
	INVALID_PTX = 218,
};

#define DRIVER_PROTOTYPE(name, parameters) int name parameters;
DRIVER_CALLS(DRIVER_PROTOTYPE)

enum type { GONE, CONTEXT, MODULE, FUNCTION, STREAM, EVENT, LIBRARY, LINK };

struct object {
	enum type type;
	struct object *under;
	struct ptx_module *module;
	const struct ptx_kernel *kernel;
	unsigned flags;
	int priority;
	struct timespec when;
	bool recorded;
	char *linked;
};

static struct object objects[OBJECTS];
static struct {
	uint8_t *base;
	size_t size;
	const struct object *under;
} allocations[ALLOCATIONS];
static size_t used;
static int spoiled; /* the error that every call answers with from now on */
static bool started;
static unsigned primary_count, primary_flags;
static struct object *primary, *current;

static struct object *new_object(enum type type, struct object *under)
{
	for (unsigned i = 0; i < OBJECTS; i++)
		if (objects[i].type == GONE) {
			objects[i] = (struct object){.type = type, .under = under};
			return &objects[i];
		}
	return NULL;
}

static struct object *get(uint64_t handle, enum type type)
{
	struct object *object = (struct object *)(uintptr_t)handle;

	if (object < objects || object >= objects + OBJECTS || object->type != type)
		return NULL;
	return object;
}

static uint64_t number(const struct object *object)
{
	return (uintptr_t)object;
}

static void release(unsigned which)
{
	used -= allocations[which].size;
	munmap(allocations[which].base, allocations[which].size);
	allocations[which].base = NULL;
}

static void end(struct object *object)
{
	for (unsigned i = 0; object->type == CONTEXT && i < ALLOCATIONS; i++)
		if (allocations[i].base && allocations[i].under == object)
			release(i);
	if (object->type == MODULE && object->module && (!object->under || object->under->type != LIBRARY))
		ptx_free(object->module);
	free(object->linked);
	object->type = GONE;
	for (unsigned i = 0; i < OBJECTS; i++)
		if (objects[i].type != GONE && objects[i].under == object)
			end(&objects[i]);
	if (current == object)
		current = NULL;
}

static int ready(void)
{
	if (!started)
		return CU_NOT_INITIALIZED;
	if (!current)
		return CU_INVALID_CONTEXT;
	return spoiled;
}

static bool is_stream(uint64_t stream)
{
	return stream <= 2 || get(stream, STREAM);
}

static bool may_touch(uint64_t at, size_t size)
{
	for (unsigned i = 0; i < OBJECTS; i++)
		for (unsigned k = 0; objects[i].type == MODULE && k < objects[i].module->variables_count; k++) {
			uint64_t base = (uintptr_t)objects[i].module->variables[k].memory;

			if (at >= base && at - base + size <= objects[i].module->variables[k].size)
				return true;
		}
	for (unsigned i = 0; i < ALLOCATIONS; i++) {
		uint64_t base = (uintptr_t)allocations[i].base;

		if (base && at >= base && at - base <= allocations[i].size && size <= allocations[i].size - (at - base))
			return true;
	}
	return false;
}

/* Start and device */

int cuInit(unsigned Flags)
{
	started = !Flags;
	return Flags ? CU_INVALID_VALUE : CU_SUCCESS;
}

int cuDriverGetVersion(int *driverVersion)
{
	*driverVersion = VERSION;
	return CU_SUCCESS;
}

int cuGetErrorName(int error, const char **pStr)
{
	*pStr = error ? "CUDA_ERROR_UNKNOWN" : "CUDA_SUCCESS";
	return CU_SUCCESS;
}

int cuDeviceGetCount(int *count)
{
	*count = 1;
	return started ? CU_SUCCESS : CU_NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal)
{
	*device = 0;
	return !started ? CU_NOT_INITIALIZED : ordinal ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceGetName(char *name, int len, int dev)
{
	snprintf(name, (size_t)len, "vmcoal stand-in");
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceGetPCIBusId(char *pciBusId, int len, int dev)
{
	snprintf(pciBusId, (size_t)len, "0000:65:00.0");
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceGetUuid(void *uuid, int dev)
{
	memcpy(uuid, "vmcoal stand-in!", 16);
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceGetUuid_v2(void *uuid, int dev)
{
	return cuDeviceGetUuid(uuid, dev);
}

int cuDeviceTotalMem_v2(size_t *bytes, int dev)
{
	*bytes = MEMORY;
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceGetAttribute(int *pi, int attrib, int dev)
{
	static const int values[][2] = {
		{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 0x7fffffff}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536},
		{10, 32}, {11, 0x7fffffff}, {12, 65536}, {13, 1000000}, {16, 2}, {19, 1}, {33, 0x65}, {39, 2048}, {40, 1},
		{41, 1}, {75, 8}, {76, 0}, {81, 102400}, {82, 65536}, {97, 49152}, {106, 32},
	};

	*pi = 0;
	for (size_t i = 0; i < sizeof values / sizeof *values; i++)
		if (values[i][0] == attrib)
			*pi = values[i][1];
	return dev ? CU_INVALID_DEVICE : attrib < 1 || attrib > 200 ? CU_INVALID_VALUE : CU_SUCCESS;
}

int cuDeviceGetProperties(void *prop, int dev)
{
	static const int values[14] = {1024, 1024, 1024, 64, 0x7fffffff, 65535, 65535, 49152, 65536, 32, 0x7fffffff, 65536,
				       1000000, 512};

	memcpy(prop, values, sizeof values);
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int dev)
{
	*major = 8;
	*minor = 0;
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

/* Contexts */

int cuDevicePrimaryCtxRetain(uint64_t *pctx, int dev)
{
	if (dev)
		return CU_INVALID_DEVICE;
	if (!primary)
		primary = new_object(CONTEXT, NULL);
	primary_count++;
	*pctx = number(primary);
	return CU_SUCCESS;
}

static void drop_primary(void)
{
	if (primary)
		end(primary);
	primary = NULL;
	primary_count = 0;
	spoiled = 0;
}

int cuDevicePrimaryCtxRelease_v2(int dev)
{
	if (dev || !primary_count)
		return CU_INVALID_CONTEXT;
	if (!--primary_count)
		drop_primary();
	return CU_SUCCESS;
}

int cuDevicePrimaryCtxReset_v2(int dev)
{
	drop_primary();
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDevicePrimaryCtxSetFlags_v2(int dev, unsigned flags)
{
	primary_flags = flags;
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuDevicePrimaryCtxGetState(int dev, unsigned *flags, int *active)
{
	*flags = primary_flags;
	*active = primary != NULL;
	return dev ? CU_INVALID_DEVICE : CU_SUCCESS;
}

int cuCtxCreate_v2(uint64_t *pctx, unsigned flags, int dev)
{
	struct object *context = dev ? NULL : new_object(CONTEXT, NULL);

	if (!context)
		return CU_INVALID_DEVICE;
	context->flags = flags;
	current = context;
	*pctx = number(context);
	return CU_SUCCESS;
}

int cuCtxDestroy_v2(uint64_t ctx)
{
	struct object *context = get(ctx, CONTEXT);

	if (!context || context == primary)
		return CU_INVALID_CONTEXT;
	end(context);
	return CU_SUCCESS;
}

int cuCtxSetCurrent(uint64_t ctx)
{
	if (ctx && !get(ctx, CONTEXT))
		return CU_INVALID_CONTEXT;
	current = get(ctx, CONTEXT);
	return CU_SUCCESS;
}

int cuCtxSynchronize(void)
{
	return ready();
}

int cuCtxGetFlags(unsigned *flags)
{
	*flags = current ? current->flags : 0;
	return ready();
}

int cuCtxSetFlags(unsigned flags)
{
	if (current)
		current->flags = flags;
	return ready();
}

int cuCtxGetId(uint64_t ctx, uint64_t *ctxId)
{
	*ctxId = ctx;
	return get(ctx, CONTEXT) ? CU_SUCCESS : CU_INVALID_CONTEXT;
}

int cuCtxGetApiVersion(uint64_t ctx, unsigned *version)
{
	*version = 3020;
	return get(ctx, CONTEXT) ? CU_SUCCESS : CU_INVALID_CONTEXT;
}

int cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority)
{
	*leastPriority = 0;
	*greatestPriority = -5;
	return ready();
}

/* Memory */

int cuMemGetInfo_v2(size_t *free, size_t *total)
{
	*free = MEMORY - used;
	*total = MEMORY;
	return ready();
}

int cuMemAlloc_v2(uint64_t *dptr, size_t bytesize)
{
	int result = ready();

	if (result)
		return result;
	if (!bytesize)
		return CU_INVALID_VALUE;
	if (bytesize > MEMORY - used)
		return CU_OUT_OF_MEMORY;
	for (unsigned i = 0; i < ALLOCATIONS; i++)
		if (!allocations[i].base) {
			allocations[i].base = mmap(NULL, bytesize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			allocations[i].size = bytesize;
			allocations[i].under = current;
			used += bytesize;
			*dptr = (uintptr_t)allocations[i].base;
			return CU_SUCCESS;
		}
	return CU_OUT_OF_MEMORY;
}

int cuMemAllocPitch_v2(uint64_t *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned ElementSizeBytes)
{
	*pPitch = (WidthInBytes + 511) / 512 * 512;
	return ElementSizeBytes < 4 || ElementSizeBytes > 16 ? CU_INVALID_VALUE : cuMemAlloc_v2(dptr, *pPitch * Height);
}

int cuMemFree_v2(uint64_t dptr)
{
	for (unsigned i = 0; i < ALLOCATIONS; i++)
		if (dptr && (uintptr_t)allocations[i].base == dptr) {
			release(i);
			return ready();
		}
	return CU_INVALID_VALUE;
}

int cuMemAllocAsync(uint64_t *dptr, size_t bytesize, uint64_t hStream)
{
	return is_stream(hStream) ? cuMemAlloc_v2(dptr, bytesize) : CU_INVALID_HANDLE;
}

int cuMemFreeAsync(uint64_t dptr, uint64_t hStream)
{
	return is_stream(hStream) ? cuMemFree_v2(dptr) : CU_INVALID_HANDLE;
}

static int copy(uint64_t to, uint64_t from, size_t size, uint64_t stream)
{
	int result = ready();

	if (!result && !is_stream(stream))
		result = CU_INVALID_HANDLE;
	if (!result)
		memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, size);
	return result;
}

int cuMemcpyHtoDAsync_v2(uint64_t dstDevice, const void *srcHost, size_t ByteCount, uint64_t hStream)
{
	if (!may_touch(dstDevice, ByteCount))
		return CU_INVALID_VALUE;
	return copy(dstDevice, (uintptr_t)srcHost, ByteCount, hStream);
}

int cuMemcpyHtoD_v2(uint64_t dstDevice, const void *srcHost, size_t ByteCount)
{
	return cuMemcpyHtoDAsync_v2(dstDevice, srcHost, ByteCount, 0);
}

int cuMemcpyDtoHAsync_v2(void *dstHost, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	if (!may_touch(srcDevice, ByteCount))
		return CU_INVALID_VALUE;
	return copy((uintptr_t)dstHost, srcDevice, ByteCount, hStream);
}

int cuMemcpyDtoH_v2(void *dstHost, uint64_t srcDevice, size_t ByteCount)
{
	return cuMemcpyDtoHAsync_v2(dstHost, srcDevice, ByteCount, 0);
}

int cuMemcpyDtoDAsync_v2(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	if (!may_touch(srcDevice, ByteCount) || !may_touch(dstDevice, ByteCount))
		return CU_INVALID_VALUE;
	return copy(dstDevice, srcDevice, ByteCount, hStream);
}

int cuMemcpyDtoD_v2(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount)
{
	return cuMemcpyDtoDAsync_v2(dstDevice, srcDevice, ByteCount, 0);
}

static int fill(uint64_t to, size_t pitch, unsigned value, size_t each, size_t count, size_t rows, uint64_t stream)
{
	int result = ready();

	if (result)
		return result;
	if (!is_stream(stream))
		return CU_INVALID_HANDLE;
	for (size_t row = 0; row < rows; row++) {
		if (!may_touch(to + row * pitch, count * each))
			return CU_INVALID_VALUE;
		for (size_t i = 0; i < count; i++)
			memcpy((uint8_t *)(uintptr_t)to + row * pitch + i * each, &value, each);
	}
	return CU_SUCCESS;
}

#define FILLS(bits, type, value, v)                                                                                        \
	int cuMemsetD##bits##v(uint64_t dstDevice, type value, size_t N)                                                   \
	{                                                                                                                  \
		return fill(dstDevice, 0, value, bits / 8, N, 1, 0);                                                       \
	}                                                                                                                  \
	int cuMemsetD##bits##Async(uint64_t dstDevice, type value, size_t N, uint64_t hStream)                             \
	{                                                                                                                  \
		return fill(dstDevice, 0, value, bits / 8, N, 1, hStream);                                                 \
	}                                                                                                                  \
	int cuMemsetD2D##bits##v(uint64_t dstDevice, size_t dstPitch, type value, size_t Width, size_t Height)             \
	{                                                                                                                  \
		return fill(dstDevice, dstPitch, value, bits / 8, Width, Height, 0);                                       \
	}                                                                                                                  \
	int cuMemsetD2D##bits##Async(uint64_t dstDevice, size_t dstPitch, type value, size_t Width, size_t Height,         \
				     uint64_t hStream)                                                                     \
	{                                                                                                                  \
		return fill(dstDevice, dstPitch, value, bits / 8, Width, Height, hStream);                                 \
	}

FILLS(8, unsigned char, uc, _v2)
FILLS(16, unsigned short, us, _v2)
FILLS(32, unsigned, ui, _v2)

/* Modules */

static void tell(unsigned count, const int *options, void **values, const char *text)
{
	enum { ERROR_LOG = 5, ERROR_LOG_SIZE = 6 };
	char *to = NULL;

	for (unsigned i = 0; i < count; i++)
		if (options[i] == ERROR_LOG)
			to = values[i];
	for (unsigned i = 0; i < count; i++)
		if (options[i] == ERROR_LOG_SIZE && to)
			snprintf(to, (size_t)(uintptr_t)values[i], "%s", text);
}

int cuModuleLoadDataEx(uint64_t *module, const void *image, unsigned numOptions, int *options, void **optionValues)
{
	struct object *object;
	struct ptx_module *ptx;
	int result = ready();

	if (result)
		return result;
	ptx = ptx_load(image);
	if (ptx->why[0]) {
		tell(numOptions, options, optionValues, ptx->why);
		ptx_free(ptx);
		return INVALID_PTX;
	}
	object = new_object(MODULE, current);
	object->module = ptx;
	*module = number(object);
	return CU_SUCCESS;
}

int cuModuleUnload(uint64_t hmod)
{
	struct object *module = get(hmod, MODULE);

	if (!module)
		return CU_INVALID_HANDLE;
	end(module);
	return ready();
}

int cuModuleGetLoadingMode(int *mode)
{
	*mode = 1;
	return CU_SUCCESS;
}

int cuModuleGetFunction(uint64_t *hfunc, uint64_t hmod, const char *name)
{
	struct object *module = get(hmod, MODULE), *function;

	if (!module)
		return CU_INVALID_HANDLE;
	for (unsigned i = 0; i < module->module->kernels_count; i++)
		if (!strcmp(module->module->kernels[i].name, name)) {
			function = new_object(FUNCTION, module);
			function->kernel = &module->module->kernels[i];
			*hfunc = number(function);
			return CU_SUCCESS;
		}
	return CU_NOT_FOUND;
}

int cuModuleGetFunctionCount(unsigned *count, uint64_t mod)
{
	const struct object *module = get(mod, MODULE);

	*count = module ? module->module->kernels_count : 0;
	return module ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuModuleGetGlobal_v2(uint64_t *dptr, size_t *bytes, uint64_t hmod, const char *name)
{
	const struct object *module = get(hmod, MODULE);

	if (!module)
		return CU_INVALID_HANDLE;
	for (unsigned i = 0; i < module->module->variables_count; i++)
		if (!strcmp(module->module->variables[i].name, name)) {
			*dptr = (uintptr_t)module->module->variables[i].memory;
			*bytes = module->module->variables[i].size;
			return CU_SUCCESS;
		}
	return CU_NOT_FOUND;
}

/* A library is a module of the primary context, a kernel one of its functions. */
int cuLibraryLoadData(uint64_t *library, const void *code, int *jitOptions, void **jitOptionsValues,
		      unsigned numJitOptions, int *libraryOptions, void **libraryOptionValues, unsigned numLibraryOptions)
{
	(void)libraryOptions;
	(void)libraryOptionValues;
	return numLibraryOptions ? CU_INVALID_VALUE
				 : cuModuleLoadDataEx(library, code, numJitOptions, jitOptions, jitOptionsValues);
}

int cuLibraryUnload(uint64_t library)
{
	return cuModuleUnload(library);
}

int cuLibraryGetKernel(uint64_t *pKernel, uint64_t library, const char *name)
{
	return cuModuleGetFunction(pKernel, library, name);
}

int cuLibraryGetKernelCount(unsigned *count, uint64_t lib)
{
	return cuModuleGetFunctionCount(count, lib);
}

int cuLibraryGetModule(uint64_t *pMod, uint64_t library)
{
	*pMod = library;
	return get(library, MODULE) ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuLibraryGetGlobal(uint64_t *dptr, size_t *bytes, uint64_t library, const char *name)
{
	return cuModuleGetGlobal_v2(dptr, bytes, library, name);
}

int cuKernelGetFunction(uint64_t *pFunc, uint64_t kernel)
{
	*pFunc = kernel;
	return get(kernel, FUNCTION) ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuFuncGetModule(uint64_t *hmod, uint64_t hfunc)
{
	struct object *function = get(hfunc, FUNCTION);

	*hmod = function ? number(function->under) : 0;
	return function ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuFuncGetName(const char **name, uint64_t hfunc)
{
	const struct object *function = get(hfunc, FUNCTION);

	*name = function ? function->kernel->name : NULL;
	return function ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuKernelGetName(const char **name, uint64_t hfunc)
{
	return cuFuncGetName(name, hfunc);
}

int cuFuncGetParamInfo(uint64_t func, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	const struct object *function = get(func, FUNCTION);

	if (!function || paramIndex >= function->kernel->parameters)
		return CU_INVALID_VALUE;
	*paramOffset = function->kernel->parameter[paramIndex].offset;
	*paramSize = function->kernel->parameter[paramIndex].size;
	return CU_SUCCESS;
}

int cuKernelGetParamInfo(uint64_t kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	return cuFuncGetParamInfo(kernel, paramIndex, paramOffset, paramSize);
}

int cuFuncGetAttribute(int *pi, int attrib, uint64_t hfunc)
{
	static const int values[] = {1024, 0, 0, 0, 16, 80, 80};

	*pi = attrib >= 0 && attrib < 7 ? values[attrib] : 0;
	return get(hfunc, FUNCTION) ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuKernelGetAttribute(int *pi, int attrib, uint64_t kernel, int dev)
{
	return dev ? CU_INVALID_DEVICE : cuFuncGetAttribute(pi, attrib, kernel);
}

int cuFuncSetAttribute(uint64_t hfunc, int attrib, int value)
{
	(void)attrib;
	(void)value;
	return get(hfunc, FUNCTION) ? CU_SUCCESS : CU_INVALID_HANDLE;
}

int cuFuncSetCacheConfig(uint64_t hfunc, int config)
{
	return cuFuncSetAttribute(hfunc, config, 0);
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, uint64_t func, int blockSize, size_t dynamicSMemSize)
{
	if (!get(func, FUNCTION) || blockSize <= 0 || dynamicSMemSize > 49152)
		return CU_INVALID_VALUE;
	*numBlocks = 2048 / blockSize;
	return CU_SUCCESS;
}

int cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, uint64_t func,
					      void *blockSizeToDynamicSMemSize, size_t dynamicSMemSize, int blockSizeLimit,
					      unsigned flags)
{
	(void)blockSizeToDynamicSMemSize;
	(void)dynamicSMemSize;
	(void)flags;
	*blockSize = blockSizeLimit > 0 && blockSizeLimit < 1024 ? blockSizeLimit : 1024;
	*minGridSize = 4;
	return get(func, FUNCTION) ? CU_SUCCESS : CU_INVALID_HANDLE;
}

/* The linker only puts PTX together. */

int cuLinkCreate_v2(unsigned numOptions, int *options, void **optionValues, uint64_t *stateOut)
{
	struct object *link = new_object(LINK, current);

	tell(numOptions, options, optionValues, "");
	*stateOut = number(link);
	return link ? ready() : CU_OUT_OF_MEMORY;
}

int cuLinkAddData_v2(uint64_t state, int type, void *data, size_t size, const char *name, unsigned numOptions,
		     int *options, void **optionValues)
{
	enum { PTX = 1 };
	struct object *link = get(state, LINK);
	size_t before;

	(void)name;
	(void)options;
	(void)optionValues;
	if (!link || numOptions)
		return CU_INVALID_HANDLE;
	if (type != PTX)
		return CU_INVALID_IMAGE;
	before = link->linked ? strlen(link->linked) : 0;
	link->linked = realloc(link->linked, before + size + 1);
	memcpy(link->linked + before, data, size);
	link->linked[before + size] = 0;
	return CU_SUCCESS;
}

int cuLinkComplete(uint64_t state, void **cubinOut, size_t *sizeOut)
{
	struct object *link = get(state, LINK);

	if (!link || !link->linked)
		return CU_INVALID_HANDLE;
	*cubinOut = link->linked;
	*sizeOut = strlen(link->linked) + 1;
	return CU_SUCCESS;
}

int cuLinkDestroy(uint64_t state)
{
	struct object *link = get(state, LINK);

	if (!link)
		return CU_INVALID_HANDLE;
	end(link);
	return CU_SUCCESS;
}

/* Launches */

int cuLaunchKernel(uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX,
		   unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream, void **kernelParams,
		   void **extra)
{
	const unsigned grid[3] = {gridDimX, gridDimY, gridDimZ}, block[3] = {blockDimX, blockDimY, blockDimZ};
	const struct object *function = get(f, FUNCTION);
	int result = ready();

	if (result)
		return result;
	if (!function || !is_stream(hStream))
		return CU_INVALID_HANDLE;
	if (!gridDimX || !gridDimY || !gridDimZ || (uint64_t)blockDimX * blockDimY * blockDimZ - 1 >= 1024 || kernelParams)
		return CU_INVALID_VALUE;
	if (sharedMemBytes > 49152 || !strcmp(function->kernel->name, "vmcoal_refused"))
		return LAUNCH_OUT_OF_RESOURCES;
	if (!strcmp(function->kernel->name, "vmcoal_crash"))
		raise(SIGKILL);
	if (function->kernel->parameters_size && (!extra || *(size_t *)extra[3] < function->kernel->parameters_size))
		return CU_INVALID_VALUE;
	switch (ptx_run(function->kernel, extra ? extra[1] : NULL, grid, block, may_touch)) {
	case PTX_BAD_ADDRESS:
		spoiled = ILLEGAL_ADDRESS;
		break;
	case PTX_TRAP:
		spoiled = LAUNCH_FAILED;
		break;
	case PTX_GOOD:
		break;
	}
	return CU_SUCCESS; /* it is told later, as a GPU would */
}

int cuLaunchKernelEx(const void *config, uint64_t f, void **kernelParams, void **extra)
{
	struct {
		unsigned grid[3], block[3], shared;
		uint64_t stream;
	} given;

	memcpy(&given, config, sizeof given);
	return cuLaunchKernel(f, given.grid[0], given.grid[1], given.grid[2], given.block[0], given.block[1], given.block[2],
			      given.shared, given.stream, kernelParams, extra);
}

/* Streams and events: everything is done at once, in the order in which it is asked for. */

int cuStreamCreate(uint64_t *phStream, unsigned Flags)
{
	return cuStreamCreateWithPriority(phStream, Flags, 0);
}

int cuStreamCreateWithPriority(uint64_t *phStream, unsigned flags, int priority)
{
	struct object *stream;
	int result = ready();

	if (result)
		return result;
	stream = flags > 1 ? NULL : new_object(STREAM, current);
	if (!stream)
		return CU_INVALID_VALUE;
	stream->flags = flags;
	stream->priority = priority;
	*phStream = number(stream);
	return CU_SUCCESS;
}

int cuStreamGetPriority(uint64_t hStream, int *priority)
{
	const struct object *stream = get(hStream, STREAM);

	*priority = stream ? stream->priority : 0;
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamGetFlags(uint64_t hStream, unsigned *flags)
{
	const struct object *stream = get(hStream, STREAM);

	*flags = stream ? stream->flags : 0;
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamGetId(uint64_t hStream, uint64_t *streamId)
{
	*streamId = hStream;
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamGetCtx(uint64_t hStream, uint64_t *pctx)
{
	struct object *stream = get(hStream, STREAM);

	*pctx = number(stream ? stream->under : current);
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamWaitEvent(uint64_t hStream, uint64_t hEvent, unsigned Flags)
{
	return is_stream(hStream) && get(hEvent, EVENT) && !Flags ? ready() : CU_INVALID_HANDLE;
}

int cuStreamQuery(uint64_t hStream)
{
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamSynchronize(uint64_t hStream)
{
	return is_stream(hStream) ? ready() : CU_INVALID_HANDLE;
}

int cuStreamDestroy_v2(uint64_t hStream)
{
	struct object *stream = get(hStream, STREAM);

	if (!stream)
		return CU_INVALID_HANDLE;
	end(stream);
	return ready();
}

int cuEventCreate(uint64_t *phEvent, unsigned Flags)
{
	struct object *event;
	int result = ready();

	if (result)
		return result;
	event = Flags > 7 ? NULL : new_object(EVENT, current);
	if (!event)
		return CU_INVALID_VALUE;
	event->flags = Flags;
	*phEvent = number(event);
	return CU_SUCCESS;
}

int cuEventRecord(uint64_t hEvent, uint64_t hStream)
{
	struct object *event = get(hEvent, EVENT);

	if (!event || !is_stream(hStream))
		return CU_INVALID_HANDLE;
	clock_gettime(CLOCK_MONOTONIC, &event->when);
	event->recorded = true;
	return ready();
}

int cuEventRecordWithFlags(uint64_t hEvent, uint64_t hStream, unsigned flags)
{
	return flags ? CU_INVALID_VALUE : cuEventRecord(hEvent, hStream);
}

int cuEventQuery(uint64_t hEvent)
{
	return get(hEvent, EVENT) ? ready() : CU_INVALID_HANDLE;
}

int cuEventSynchronize(uint64_t hEvent)
{
	return cuEventQuery(hEvent);
}

int cuEventDestroy_v2(uint64_t hEvent)
{
	struct object *event = get(hEvent, EVENT);

	if (!event)
		return CU_INVALID_HANDLE;
	end(event);
	return ready();
}

int cuEventElapsedTime(float *pMilliseconds, uint64_t hStart, uint64_t hEnd)
{
	const struct object *start = get(hStart, EVENT), *stop = get(hEnd, EVENT);

	if (!start || !stop || !start->recorded || !stop->recorded)
		return CU_INVALID_HANDLE;
	*pMilliseconds = (float)(stop->when.tv_sec - start->when.tv_sec) * 1e3F +
			 (float)(stop->when.tv_nsec - start->when.tv_nsec) / 1e6F;
	return ready();
}

int cuEventElapsedTime_v2(float *pMilliseconds, uint64_t hStart, uint64_t hEnd)
{
	return cuEventElapsedTime(pMilliseconds, hStart, hEnd);
}
