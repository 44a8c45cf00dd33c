/* Written by tools/generate-cuda from calls.txt; do not edit. */

#include "serve_calls.h"

static int serve_cuDeviceGetName(struct session *session, struct reader *in, struct writer *out)
{
	char name[4096] = {0};
	int len = (int)read_number(in);
	int dev = real_device(session, in);
	int result;

	(void)len;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceGetName(name, 4096, dev);
	if (result)
		return result;
	write_text(out, name, sizeof name);
	return result;
}

static int serve_cuDeviceGetPCIBusId(struct session *session, struct reader *in, struct writer *out)
{
	char pciBusId[4096] = {0};
	int len = (int)read_number(in);
	int dev = real_device(session, in);
	int result;

	(void)len;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceGetPCIBusId(pciBusId, 4096, dev);
	if (result)
		return result;
	write_text(out, pciBusId, sizeof pciBusId);
	return result;
}

static int serve_cuDeviceGetUuid(struct session *session, struct reader *in, struct writer *out)
{
	uint8_t uuid[16] = {0};
	int dev = real_device(session, in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceGetUuid(uuid, dev);
	if (result)
		return result;
	write_bytes(out, uuid, sizeof uuid);
	return result;
}

static int serve_cuDeviceGetUuid_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint8_t uuid[16] = {0};
	int dev = real_device(session, in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceGetUuid_v2(uuid, dev);
	if (result)
		return result;
	write_bytes(out, uuid, sizeof uuid);
	return result;
}

static int serve_cuDeviceGetProperties(struct session *session, struct reader *in, struct writer *out)
{
	uint8_t prop[56] = {0};
	int dev = real_device(session, in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceGetProperties(prop, dev);
	if (result)
		return result;
	write_bytes(out, prop, sizeof prop);
	return result;
}

static int serve_cuDeviceComputeCapability(struct session *session, struct reader *in, struct writer *out)
{
	int major = 0;
	int minor = 0;
	int dev = real_device(session, in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDeviceComputeCapability(&major, &minor, dev);
	if (result)
		return result;
	write_bytes(out, &major, sizeof major);
	write_bytes(out, &minor, sizeof minor);
	return result;
}

static int serve_cuDevicePrimaryCtxSetFlags_v2(struct session *session, struct reader *in, struct writer *out)
{
	int dev = real_device(session, in);
	unsigned flags = (unsigned)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDevicePrimaryCtxSetFlags_v2(dev, flags);
	return result;
}

static int serve_cuDevicePrimaryCtxGetState(struct session *session, struct reader *in, struct writer *out)
{
	int dev = real_device(session, in);
	unsigned flags = 0;
	int active = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuDevicePrimaryCtxGetState(dev, &flags, &active);
	if (result)
		return result;
	write_bytes(out, &flags, sizeof flags);
	write_bytes(out, &active, sizeof active);
	return result;
}

static int serve_cuCtxDestroy_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t ctx_id = read_number(in);
	uint64_t ctx = real_handle(session, in, ctx_id, HANDLE_CONTEXT);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxDestroy_v2(ctx);
	if (result)
		return result;
	drop_handle(session, ctx_id);
	return result;
}

static int serve_cuCtxSynchronize(struct session *session, struct reader *in, struct writer *out)
{
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxSynchronize();
	return result;
}

static int serve_cuCtxGetFlags(struct session *session, struct reader *in, struct writer *out)
{
	unsigned flags = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetFlags(&flags);
	if (result)
		return result;
	write_bytes(out, &flags, sizeof flags);
	return result;
}

static int serve_cuCtxSetFlags(struct session *session, struct reader *in, struct writer *out)
{
	unsigned flags = (unsigned)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxSetFlags(flags);
	return result;
}

static int serve_cuCtxGetId(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t ctx_id = read_number(in);
	uint64_t ctx = real_handle(session, in, ctx_id, HANDLE_CONTEXT);
	uint64_t ctxId = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetId(ctx, &ctxId);
	if (result)
		return result;
	write_bytes(out, &ctxId, sizeof ctxId);
	return result;
}

static int serve_cuCtxSetLimit(struct session *session, struct reader *in, struct writer *out)
{
	int limit = (int)read_number(in);
	size_t value = (size_t)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxSetLimit(limit, value);
	return result;
}

static int serve_cuCtxGetLimit(struct session *session, struct reader *in, struct writer *out)
{
	size_t pvalue = 0;
	int limit = (int)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetLimit(&pvalue, limit);
	if (result)
		return result;
	write_bytes(out, &pvalue, sizeof pvalue);
	return result;
}

static int serve_cuCtxGetCacheConfig(struct session *session, struct reader *in, struct writer *out)
{
	int pconfig = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetCacheConfig(&pconfig);
	if (result)
		return result;
	write_bytes(out, &pconfig, sizeof pconfig);
	return result;
}

static int serve_cuCtxSetCacheConfig(struct session *session, struct reader *in, struct writer *out)
{
	int config = (int)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxSetCacheConfig(config);
	return result;
}

static int serve_cuCtxGetSharedMemConfig(struct session *session, struct reader *in, struct writer *out)
{
	int pConfig = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetSharedMemConfig(&pConfig);
	if (result)
		return result;
	write_bytes(out, &pConfig, sizeof pConfig);
	return result;
}

static int serve_cuCtxSetSharedMemConfig(struct session *session, struct reader *in, struct writer *out)
{
	int config = (int)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxSetSharedMemConfig(config);
	return result;
}

static int serve_cuCtxGetApiVersion(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t ctx_id = read_number(in);
	uint64_t ctx = real_handle(session, in, ctx_id, HANDLE_CONTEXT);
	unsigned version = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetApiVersion(ctx, &version);
	if (result)
		return result;
	write_bytes(out, &version, sizeof version);
	return result;
}

static int serve_cuCtxGetStreamPriorityRange(struct session *session, struct reader *in, struct writer *out)
{
	int leastPriority = 0;
	int greatestPriority = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxGetStreamPriorityRange(&leastPriority, &greatestPriority);
	if (result)
		return result;
	write_bytes(out, &leastPriority, sizeof leastPriority);
	write_bytes(out, &greatestPriority, sizeof greatestPriority);
	return result;
}

static int serve_cuCtxResetPersistingL2Cache(struct session *session, struct reader *in, struct writer *out)
{
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuCtxResetPersistingL2Cache();
	return result;
}

static int serve_cuModuleUnload(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hmod_id = read_number(in);
	uint64_t hmod = real_handle(session, in, hmod_id, HANDLE_MODULE);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuModuleUnload(hmod);
	if (result)
		return result;
	drop_handle(session, hmod_id);
	return result;
}

static int serve_cuModuleGetLoadingMode(struct session *session, struct reader *in, struct writer *out)
{
	int mode = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuModuleGetLoadingMode(&mode);
	if (result)
		return result;
	write_bytes(out, &mode, sizeof mode);
	return result;
}

static int serve_cuModuleGetFunction(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hfunc = 0;
	uint64_t hmod_id = read_number(in);
	uint64_t hmod = real_handle(session, in, hmod_id, HANDLE_MODULE);
	const char *name = read_text(in);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuModuleGetFunction(&hfunc, hmod, name);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_FUNCTION, hfunc, hmod_id);
	return result;
}

static int serve_cuModuleGetFunctionCount(struct session *session, struct reader *in, struct writer *out)
{
	unsigned count = 0;
	uint64_t mod_id = read_number(in);
	uint64_t mod = real_handle(session, in, mod_id, HANDLE_MODULE);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuModuleGetFunctionCount(&count, mod);
	if (result)
		return result;
	write_bytes(out, &count, sizeof count);
	return result;
}

static int serve_cuLibraryUnload(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t library_id = read_number(in);
	uint64_t library = real_handle(session, in, library_id, HANDLE_LIBRARY);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuLibraryUnload(library);
	if (result)
		return result;
	drop_handle(session, library_id);
	return result;
}

static int serve_cuLibraryGetKernel(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t pKernel = 0;
	uint64_t library_id = read_number(in);
	uint64_t library = real_handle(session, in, library_id, HANDLE_LIBRARY);
	const char *name = read_text(in);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuLibraryGetKernel(&pKernel, library, name);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_KERNEL, pKernel, library_id);
	return result;
}

static int serve_cuLibraryGetKernelCount(struct session *session, struct reader *in, struct writer *out)
{
	unsigned count = 0;
	uint64_t lib_id = read_number(in);
	uint64_t lib = real_handle(session, in, lib_id, HANDLE_LIBRARY);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuLibraryGetKernelCount(&count, lib);
	if (result)
		return result;
	write_bytes(out, &count, sizeof count);
	return result;
}

static int serve_cuLibraryGetModule(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t pMod = 0;
	uint64_t library_id = read_number(in);
	uint64_t library = real_handle(session, in, library_id, HANDLE_LIBRARY);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuLibraryGetModule(&pMod, library);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_MODULE, pMod, library_id);
	return result;
}

static int serve_cuKernelGetFunction(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t pFunc = 0;
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuKernelGetFunction(&pFunc, kernel);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_FUNCTION, pFunc, kernel_id);
	return result;
}

static int serve_cuKernelGetLibrary(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t pLib = 0;
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuKernelGetLibrary(&pLib, kernel);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_LIBRARY, pLib, session->context);
	return result;
}

static int serve_cuKernelGetParamInfo(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	size_t paramIndex = (size_t)read_number(in);
	size_t paramOffset = 0;
	size_t paramSize = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuKernelGetParamInfo(kernel, paramIndex, &paramOffset, &paramSize);
	if (result)
		return result;
	write_bytes(out, &paramOffset, sizeof paramOffset);
	write_bytes(out, &paramSize, sizeof paramSize);
	return result;
}

static int serve_cuKernelGetAttribute(struct session *session, struct reader *in, struct writer *out)
{
	int pi = 0;
	int attrib = (int)read_number(in);
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	int dev = real_device(session, in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuKernelGetAttribute(&pi, attrib, kernel, dev);
	if (result)
		return result;
	write_bytes(out, &pi, sizeof pi);
	return result;
}

static int serve_cuKernelSetAttribute(struct session *session, struct reader *in, struct writer *out)
{
	int attrib = (int)read_number(in);
	int val = (int)read_number(in);
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	int dev = real_device(session, in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuKernelSetAttribute(attrib, val, kernel, dev);
	return result;
}

static int serve_cuKernelSetCacheConfig(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t kernel_id = read_number(in);
	uint64_t kernel = real_handle(session, in, kernel_id, HANDLE_KERNEL);
	int config = (int)read_number(in);
	int dev = real_device(session, in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuKernelSetCacheConfig(kernel, config, dev);
	return result;
}

static int serve_cuFuncGetAttribute(struct session *session, struct reader *in, struct writer *out)
{
	int pi = 0;
	int attrib = (int)read_number(in);
	uint64_t hfunc_id = read_number(in);
	uint64_t hfunc = real_handle(session, in, hfunc_id, HANDLE_FUNCTION);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncGetAttribute(&pi, attrib, hfunc);
	if (result)
		return result;
	write_bytes(out, &pi, sizeof pi);
	return result;
}

static int serve_cuFuncSetAttribute(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hfunc_id = read_number(in);
	uint64_t hfunc = real_handle(session, in, hfunc_id, HANDLE_FUNCTION);
	int attrib = (int)read_number(in);
	int value = (int)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncSetAttribute(hfunc, attrib, value);
	return result;
}

static int serve_cuFuncSetCacheConfig(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hfunc_id = read_number(in);
	uint64_t hfunc = real_handle(session, in, hfunc_id, HANDLE_FUNCTION);
	int config = (int)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncSetCacheConfig(hfunc, config);
	return result;
}

static int serve_cuFuncSetSharedMemConfig(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hfunc_id = read_number(in);
	uint64_t hfunc = real_handle(session, in, hfunc_id, HANDLE_FUNCTION);
	int config = (int)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncSetSharedMemConfig(hfunc, config);
	return result;
}

static int serve_cuFuncGetModule(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hmod = 0;
	uint64_t hfunc_id = read_number(in);
	uint64_t hfunc = real_handle(session, in, hfunc_id, HANDLE_FUNCTION);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuFuncGetModule(&hmod, hfunc);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_MODULE, hmod, session->context);
	return result;
}

static int serve_cuFuncGetParamInfo(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t func_id = read_number(in);
	uint64_t func = real_handle(session, in, func_id, HANDLE_FUNCTION);
	size_t paramIndex = (size_t)read_number(in);
	size_t paramOffset = 0;
	size_t paramSize = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncGetParamInfo(func, paramIndex, &paramOffset, &paramSize);
	if (result)
		return result;
	write_bytes(out, &paramOffset, sizeof paramOffset);
	write_bytes(out, &paramSize, sizeof paramSize);
	return result;
}

static int serve_cuFuncIsLoaded(struct session *session, struct reader *in, struct writer *out)
{
	int state = 0;
	uint64_t function_id = read_number(in);
	uint64_t function = real_handle(session, in, function_id, HANDLE_FUNCTION);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncIsLoaded(&state, function);
	if (result)
		return result;
	write_bytes(out, &state, sizeof state);
	return result;
}

static int serve_cuFuncLoad(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t function_id = read_number(in);
	uint64_t function = real_handle(session, in, function_id, HANDLE_FUNCTION);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuFuncLoad(function);
	return result;
}

static int serve_cuOccupancyMaxActiveBlocksPerMultiprocessor(struct session *session, struct reader *in, struct writer *out)
{
	int numBlocks = 0;
	uint64_t func_id = read_number(in);
	uint64_t func = real_handle(session, in, func_id, HANDLE_FUNCTION);
	int blockSize = (int)read_number(in);
	size_t dynamicSMemSize = (size_t)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(&numBlocks, func, blockSize, dynamicSMemSize);
	if (result)
		return result;
	write_bytes(out, &numBlocks, sizeof numBlocks);
	return result;
}

static int serve_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(struct session *session, struct reader *in, struct writer *out)
{
	int numBlocks = 0;
	uint64_t func_id = read_number(in);
	uint64_t func = real_handle(session, in, func_id, HANDLE_FUNCTION);
	int blockSize = (int)read_number(in);
	size_t dynamicSMemSize = (size_t)read_number(in);
	unsigned flags = (unsigned)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(&numBlocks, func, blockSize, dynamicSMemSize, flags);
	if (result)
		return result;
	write_bytes(out, &numBlocks, sizeof numBlocks);
	return result;
}

static int serve_cuOccupancyAvailableDynamicSMemPerBlock(struct session *session, struct reader *in, struct writer *out)
{
	size_t dynamicSmemSize = 0;
	uint64_t func_id = read_number(in);
	uint64_t func = real_handle(session, in, func_id, HANDLE_FUNCTION);
	int numBlocks = (int)read_number(in);
	int blockSize = (int)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuOccupancyAvailableDynamicSMemPerBlock(&dynamicSmemSize, func, numBlocks, blockSize);
	if (result)
		return result;
	write_bytes(out, &dynamicSmemSize, sizeof dynamicSmemSize);
	return result;
}

static int serve_cuMemcpyDtoD_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	uint64_t srcDevice = read_number(in);
	size_t ByteCount = (size_t)read_number(in);
	int result;

	(void)out;
	touches(session, in, dstDevice, ByteCount, 1);
	touches(session, in, srcDevice, ByteCount, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemcpyDtoD_v2(dstDevice, srcDevice, ByteCount);
	return result;
}

static int serve_cuMemcpyDtoDAsync_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	uint64_t srcDevice = read_number(in);
	size_t ByteCount = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches(session, in, dstDevice, ByteCount, 1);
	touches(session, in, srcDevice, ByteCount, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemcpyDtoDAsync_v2(dstDevice, srcDevice, ByteCount, hStream);
	return result;
}

static int serve_cuMemsetD8_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned char uc = (unsigned char)read_number(in);
	size_t N = (size_t)read_number(in);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD8_v2(dstDevice, uc, N);
	return result;
}

static int serve_cuMemsetD16_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned short us = (unsigned short)read_number(in);
	size_t N = (size_t)read_number(in);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 2);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD16_v2(dstDevice, us, N);
	return result;
}

static int serve_cuMemsetD32_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned ui = (unsigned)read_number(in);
	size_t N = (size_t)read_number(in);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 4);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD32_v2(dstDevice, ui, N);
	return result;
}

static int serve_cuMemsetD8Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned char uc = (unsigned char)read_number(in);
	size_t N = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD8Async(dstDevice, uc, N, hStream);
	return result;
}

static int serve_cuMemsetD16Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned short us = (unsigned short)read_number(in);
	size_t N = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 2);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD16Async(dstDevice, us, N, hStream);
	return result;
}

static int serve_cuMemsetD32Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	unsigned ui = (unsigned)read_number(in);
	size_t N = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches(session, in, dstDevice, N, 4);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD32Async(dstDevice, ui, N, hStream);
	return result;
}

static int serve_cuMemsetD2D8_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned char uc = (unsigned char)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D8_v2(dstDevice, dstPitch, uc, Width, Height);
	return result;
}

static int serve_cuMemsetD2D16_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned short us = (unsigned short)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 2);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D16_v2(dstDevice, dstPitch, us, Width, Height);
	return result;
}

static int serve_cuMemsetD2D32_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned ui = (unsigned)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 4);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D32_v2(dstDevice, dstPitch, ui, Width, Height);
	return result;
}

static int serve_cuMemsetD2D8Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned char uc = (unsigned char)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 1);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D8Async(dstDevice, dstPitch, uc, Width, Height, hStream);
	return result;
}

static int serve_cuMemsetD2D16Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned short us = (unsigned short)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 2);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D16Async(dstDevice, dstPitch, us, Width, Height, hStream);
	return result;
}

static int serve_cuMemsetD2D32Async(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t dstDevice = read_number(in);
	size_t dstPitch = (size_t)read_number(in);
	unsigned ui = (unsigned)read_number(in);
	size_t Width = (size_t)read_number(in);
	size_t Height = (size_t)read_number(in);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	touches_rows(session, in, dstDevice, dstPitch, Width, Height, 4);
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuMemsetD2D32Async(dstDevice, dstPitch, ui, Width, Height, hStream);
	return result;
}

static int serve_cuStreamCreate(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t phStream = 0;
	unsigned Flags = (unsigned)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuStreamCreate(&phStream, Flags);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_STREAM, phStream, session->context);
	return result;
}

static int serve_cuStreamCreateWithPriority(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t phStream = 0;
	unsigned flags = (unsigned)read_number(in);
	int priority = (int)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuStreamCreateWithPriority(&phStream, flags, priority);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_STREAM, phStream, session->context);
	return result;
}

static int serve_cuStreamGetPriority(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int priority = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamGetPriority(hStream, &priority);
	if (result)
		return result;
	write_bytes(out, &priority, sizeof priority);
	return result;
}

static int serve_cuStreamGetFlags(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	unsigned flags = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamGetFlags(hStream, &flags);
	if (result)
		return result;
	write_bytes(out, &flags, sizeof flags);
	return result;
}

static int serve_cuStreamGetId(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	uint64_t streamId = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamGetId(hStream, &streamId);
	if (result)
		return result;
	write_bytes(out, &streamId, sizeof streamId);
	return result;
}

static int serve_cuStreamGetCtx(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	uint64_t pctx = 0;
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuStreamGetCtx(hStream, &pctx);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_CONTEXT, pctx, 0);
	return result;
}

static int serve_cuStreamWaitEvent(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	unsigned Flags = (unsigned)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamWaitEvent(hStream, hEvent, Flags);
	return result;
}

static int serve_cuStreamQuery(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamQuery(hStream);
	return result;
}

static int serve_cuStreamSynchronize(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamSynchronize(hStream);
	return result;
}

static int serve_cuStreamDestroy_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuStreamDestroy_v2(hStream);
	if (result)
		return result;
	drop_handle(session, hStream_id);
	return result;
}

static int serve_cuEventCreate(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t phEvent = 0;
	unsigned Flags = (unsigned)read_number(in);
	int result;

	if ((result = read_end(in)))
		return result;
	if (!session_has_room(session))
		return CU_OUT_OF_MEMORY;
	result = session->driver->cuEventCreate(&phEvent, Flags);
	if (result)
		return result;
	result = give_handle(session, out, HANDLE_EVENT, phEvent, session->context);
	return result;
}

static int serve_cuEventRecord(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventRecord(hEvent, hStream);
	return result;
}

static int serve_cuEventRecordWithFlags(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	uint64_t hStream_id = read_number(in);
	uint64_t hStream = real_handle(session, in, hStream_id, HANDLE_STREAM);
	unsigned flags = (unsigned)read_number(in);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventRecordWithFlags(hEvent, hStream, flags);
	return result;
}

static int serve_cuEventQuery(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventQuery(hEvent);
	return result;
}

static int serve_cuEventSynchronize(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventSynchronize(hEvent);
	return result;
}

static int serve_cuEventDestroy_v2(struct session *session, struct reader *in, struct writer *out)
{
	uint64_t hEvent_id = read_number(in);
	uint64_t hEvent = real_handle(session, in, hEvent_id, HANDLE_EVENT);
	int result;

	(void)out;
	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventDestroy_v2(hEvent);
	if (result)
		return result;
	drop_handle(session, hEvent_id);
	return result;
}

static int serve_cuEventElapsedTime(struct session *session, struct reader *in, struct writer *out)
{
	float pMilliseconds = 0;
	uint64_t hStart_id = read_number(in);
	uint64_t hStart = real_handle(session, in, hStart_id, HANDLE_EVENT);
	uint64_t hEnd_id = read_number(in);
	uint64_t hEnd = real_handle(session, in, hEnd_id, HANDLE_EVENT);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventElapsedTime(&pMilliseconds, hStart, hEnd);
	if (result)
		return result;
	write_bytes(out, &pMilliseconds, sizeof pMilliseconds);
	return result;
}

static int serve_cuEventElapsedTime_v2(struct session *session, struct reader *in, struct writer *out)
{
	float pMilliseconds = 0;
	uint64_t hStart_id = read_number(in);
	uint64_t hStart = real_handle(session, in, hStart_id, HANDLE_EVENT);
	uint64_t hEnd_id = read_number(in);
	uint64_t hEnd = real_handle(session, in, hEnd_id, HANDLE_EVENT);
	int result;

	if ((result = read_end(in)))
		return result;
	result = session->driver->cuEventElapsedTime_v2(&pMilliseconds, hStart, hEnd);
	if (result)
		return result;
	write_bytes(out, &pMilliseconds, sizeof pMilliseconds);
	return result;
}

serve_call *const served[OPS] = {
	[OP_hello] = serve_hello,
	[OP_unsupported] = serve_unsupported,
	[OP_load] = serve_load,
	[OP_load_library] = serve_load_library,
	[OP_link] = serve_link,
	[OP_name] = serve_name,
	[OP_layout] = serve_layout,
	[OP_launch] = serve_launch,
	[OP_block_size] = serve_block_size,
	[OP_write] = serve_write,
	[OP_read] = serve_read,
	[OP_copy_rows] = serve_copy_rows,
	[OP_cuDeviceGetName] = serve_cuDeviceGetName,
	[OP_cuDeviceGetPCIBusId] = serve_cuDeviceGetPCIBusId,
	[OP_cuDeviceGetUuid] = serve_cuDeviceGetUuid,
	[OP_cuDeviceGetUuid_v2] = serve_cuDeviceGetUuid_v2,
	[OP_cuDeviceTotalMem_v2] = serve_cuDeviceTotalMem_v2,
	[OP_cuDeviceGetAttribute] = serve_cuDeviceGetAttribute,
	[OP_cuDeviceGetProperties] = serve_cuDeviceGetProperties,
	[OP_cuDeviceComputeCapability] = serve_cuDeviceComputeCapability,
	[OP_cuDevicePrimaryCtxRetain] = serve_cuDevicePrimaryCtxRetain,
	[OP_cuDevicePrimaryCtxRelease_v2] = serve_cuDevicePrimaryCtxRelease_v2,
	[OP_cuDevicePrimaryCtxReset_v2] = serve_cuDevicePrimaryCtxReset_v2,
	[OP_cuDevicePrimaryCtxSetFlags_v2] = serve_cuDevicePrimaryCtxSetFlags_v2,
	[OP_cuDevicePrimaryCtxGetState] = serve_cuDevicePrimaryCtxGetState,
	[OP_cuCtxCreate_v2] = serve_cuCtxCreate_v2,
	[OP_cuCtxDestroy_v2] = serve_cuCtxDestroy_v2,
	[OP_cuCtxSynchronize] = serve_cuCtxSynchronize,
	[OP_cuCtxGetFlags] = serve_cuCtxGetFlags,
	[OP_cuCtxSetFlags] = serve_cuCtxSetFlags,
	[OP_cuCtxGetId] = serve_cuCtxGetId,
	[OP_cuCtxSetLimit] = serve_cuCtxSetLimit,
	[OP_cuCtxGetLimit] = serve_cuCtxGetLimit,
	[OP_cuCtxGetCacheConfig] = serve_cuCtxGetCacheConfig,
	[OP_cuCtxSetCacheConfig] = serve_cuCtxSetCacheConfig,
	[OP_cuCtxGetSharedMemConfig] = serve_cuCtxGetSharedMemConfig,
	[OP_cuCtxSetSharedMemConfig] = serve_cuCtxSetSharedMemConfig,
	[OP_cuCtxGetApiVersion] = serve_cuCtxGetApiVersion,
	[OP_cuCtxGetStreamPriorityRange] = serve_cuCtxGetStreamPriorityRange,
	[OP_cuCtxResetPersistingL2Cache] = serve_cuCtxResetPersistingL2Cache,
	[OP_cuModuleUnload] = serve_cuModuleUnload,
	[OP_cuModuleGetLoadingMode] = serve_cuModuleGetLoadingMode,
	[OP_cuModuleGetFunction] = serve_cuModuleGetFunction,
	[OP_cuModuleGetFunctionCount] = serve_cuModuleGetFunctionCount,
	[OP_cuModuleGetGlobal_v2] = serve_cuModuleGetGlobal_v2,
	[OP_cuLibraryUnload] = serve_cuLibraryUnload,
	[OP_cuLibraryGetKernel] = serve_cuLibraryGetKernel,
	[OP_cuLibraryGetKernelCount] = serve_cuLibraryGetKernelCount,
	[OP_cuLibraryGetModule] = serve_cuLibraryGetModule,
	[OP_cuLibraryGetGlobal] = serve_cuLibraryGetGlobal,
	[OP_cuKernelGetFunction] = serve_cuKernelGetFunction,
	[OP_cuKernelGetLibrary] = serve_cuKernelGetLibrary,
	[OP_cuKernelGetParamInfo] = serve_cuKernelGetParamInfo,
	[OP_cuKernelGetAttribute] = serve_cuKernelGetAttribute,
	[OP_cuKernelSetAttribute] = serve_cuKernelSetAttribute,
	[OP_cuKernelSetCacheConfig] = serve_cuKernelSetCacheConfig,
	[OP_cuFuncGetAttribute] = serve_cuFuncGetAttribute,
	[OP_cuFuncSetAttribute] = serve_cuFuncSetAttribute,
	[OP_cuFuncSetCacheConfig] = serve_cuFuncSetCacheConfig,
	[OP_cuFuncSetSharedMemConfig] = serve_cuFuncSetSharedMemConfig,
	[OP_cuFuncGetModule] = serve_cuFuncGetModule,
	[OP_cuFuncGetParamInfo] = serve_cuFuncGetParamInfo,
	[OP_cuFuncIsLoaded] = serve_cuFuncIsLoaded,
	[OP_cuFuncLoad] = serve_cuFuncLoad,
	[OP_cuOccupancyMaxActiveBlocksPerMultiprocessor] = serve_cuOccupancyMaxActiveBlocksPerMultiprocessor,
	[OP_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags] = serve_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags,
	[OP_cuOccupancyAvailableDynamicSMemPerBlock] = serve_cuOccupancyAvailableDynamicSMemPerBlock,
	[OP_cuMemGetInfo_v2] = serve_cuMemGetInfo_v2,
	[OP_cuMemAlloc_v2] = serve_cuMemAlloc_v2,
	[OP_cuMemAllocPitch_v2] = serve_cuMemAllocPitch_v2,
	[OP_cuMemFree_v2] = serve_cuMemFree_v2,
	[OP_cuMemAllocAsync] = serve_cuMemAllocAsync,
	[OP_cuMemFreeAsync] = serve_cuMemFreeAsync,
	[OP_cuMemcpyDtoD_v2] = serve_cuMemcpyDtoD_v2,
	[OP_cuMemcpyDtoDAsync_v2] = serve_cuMemcpyDtoDAsync_v2,
	[OP_cuMemsetD8_v2] = serve_cuMemsetD8_v2,
	[OP_cuMemsetD16_v2] = serve_cuMemsetD16_v2,
	[OP_cuMemsetD32_v2] = serve_cuMemsetD32_v2,
	[OP_cuMemsetD8Async] = serve_cuMemsetD8Async,
	[OP_cuMemsetD16Async] = serve_cuMemsetD16Async,
	[OP_cuMemsetD32Async] = serve_cuMemsetD32Async,
	[OP_cuMemsetD2D8_v2] = serve_cuMemsetD2D8_v2,
	[OP_cuMemsetD2D16_v2] = serve_cuMemsetD2D16_v2,
	[OP_cuMemsetD2D32_v2] = serve_cuMemsetD2D32_v2,
	[OP_cuMemsetD2D8Async] = serve_cuMemsetD2D8Async,
	[OP_cuMemsetD2D16Async] = serve_cuMemsetD2D16Async,
	[OP_cuMemsetD2D32Async] = serve_cuMemsetD2D32Async,
	[OP_cuStreamCreate] = serve_cuStreamCreate,
	[OP_cuStreamCreateWithPriority] = serve_cuStreamCreateWithPriority,
	[OP_cuStreamGetPriority] = serve_cuStreamGetPriority,
	[OP_cuStreamGetFlags] = serve_cuStreamGetFlags,
	[OP_cuStreamGetId] = serve_cuStreamGetId,
	[OP_cuStreamGetCtx] = serve_cuStreamGetCtx,
	[OP_cuStreamWaitEvent] = serve_cuStreamWaitEvent,
	[OP_cuStreamQuery] = serve_cuStreamQuery,
	[OP_cuStreamSynchronize] = serve_cuStreamSynchronize,
	[OP_cuStreamDestroy_v2] = serve_cuStreamDestroy_v2,
	[OP_cuEventCreate] = serve_cuEventCreate,
	[OP_cuEventRecord] = serve_cuEventRecord,
	[OP_cuEventRecordWithFlags] = serve_cuEventRecordWithFlags,
	[OP_cuEventQuery] = serve_cuEventQuery,
	[OP_cuEventSynchronize] = serve_cuEventSynchronize,
	[OP_cuEventDestroy_v2] = serve_cuEventDestroy_v2,
	[OP_cuEventElapsedTime] = serve_cuEventElapsedTime,
	[OP_cuEventElapsedTime_v2] = serve_cuEventElapsedTime_v2,
};

const char *const op_names[OPS] = {
	[OP_hello] = "hello",
	[OP_unsupported] = "unsupported",
	[OP_load] = "load",
	[OP_load_library] = "load_library",
	[OP_link] = "link",
	[OP_name] = "name",
	[OP_layout] = "layout",
	[OP_launch] = "launch",
	[OP_block_size] = "block_size",
	[OP_write] = "write",
	[OP_read] = "read",
	[OP_copy_rows] = "copy_rows",
	[OP_cuDeviceGetName] = "cuDeviceGetName",
	[OP_cuDeviceGetPCIBusId] = "cuDeviceGetPCIBusId",
	[OP_cuDeviceGetUuid] = "cuDeviceGetUuid",
	[OP_cuDeviceGetUuid_v2] = "cuDeviceGetUuid_v2",
	[OP_cuDeviceTotalMem_v2] = "cuDeviceTotalMem_v2",
	[OP_cuDeviceGetAttribute] = "cuDeviceGetAttribute",
	[OP_cuDeviceGetProperties] = "cuDeviceGetProperties",
	[OP_cuDeviceComputeCapability] = "cuDeviceComputeCapability",
	[OP_cuDevicePrimaryCtxRetain] = "cuDevicePrimaryCtxRetain",
	[OP_cuDevicePrimaryCtxRelease_v2] = "cuDevicePrimaryCtxRelease_v2",
	[OP_cuDevicePrimaryCtxReset_v2] = "cuDevicePrimaryCtxReset_v2",
	[OP_cuDevicePrimaryCtxSetFlags_v2] = "cuDevicePrimaryCtxSetFlags_v2",
	[OP_cuDevicePrimaryCtxGetState] = "cuDevicePrimaryCtxGetState",
	[OP_cuCtxCreate_v2] = "cuCtxCreate_v2",
	[OP_cuCtxDestroy_v2] = "cuCtxDestroy_v2",
	[OP_cuCtxSynchronize] = "cuCtxSynchronize",
	[OP_cuCtxGetFlags] = "cuCtxGetFlags",
	[OP_cuCtxSetFlags] = "cuCtxSetFlags",
	[OP_cuCtxGetId] = "cuCtxGetId",
	[OP_cuCtxSetLimit] = "cuCtxSetLimit",
	[OP_cuCtxGetLimit] = "cuCtxGetLimit",
	[OP_cuCtxGetCacheConfig] = "cuCtxGetCacheConfig",
	[OP_cuCtxSetCacheConfig] = "cuCtxSetCacheConfig",
	[OP_cuCtxGetSharedMemConfig] = "cuCtxGetSharedMemConfig",
	[OP_cuCtxSetSharedMemConfig] = "cuCtxSetSharedMemConfig",
	[OP_cuCtxGetApiVersion] = "cuCtxGetApiVersion",
	[OP_cuCtxGetStreamPriorityRange] = "cuCtxGetStreamPriorityRange",
	[OP_cuCtxResetPersistingL2Cache] = "cuCtxResetPersistingL2Cache",
	[OP_cuModuleUnload] = "cuModuleUnload",
	[OP_cuModuleGetLoadingMode] = "cuModuleGetLoadingMode",
	[OP_cuModuleGetFunction] = "cuModuleGetFunction",
	[OP_cuModuleGetFunctionCount] = "cuModuleGetFunctionCount",
	[OP_cuModuleGetGlobal_v2] = "cuModuleGetGlobal_v2",
	[OP_cuLibraryUnload] = "cuLibraryUnload",
	[OP_cuLibraryGetKernel] = "cuLibraryGetKernel",
	[OP_cuLibraryGetKernelCount] = "cuLibraryGetKernelCount",
	[OP_cuLibraryGetModule] = "cuLibraryGetModule",
	[OP_cuLibraryGetGlobal] = "cuLibraryGetGlobal",
	[OP_cuKernelGetFunction] = "cuKernelGetFunction",
	[OP_cuKernelGetLibrary] = "cuKernelGetLibrary",
	[OP_cuKernelGetParamInfo] = "cuKernelGetParamInfo",
	[OP_cuKernelGetAttribute] = "cuKernelGetAttribute",
	[OP_cuKernelSetAttribute] = "cuKernelSetAttribute",
	[OP_cuKernelSetCacheConfig] = "cuKernelSetCacheConfig",
	[OP_cuFuncGetAttribute] = "cuFuncGetAttribute",
	[OP_cuFuncSetAttribute] = "cuFuncSetAttribute",
	[OP_cuFuncSetCacheConfig] = "cuFuncSetCacheConfig",
	[OP_cuFuncSetSharedMemConfig] = "cuFuncSetSharedMemConfig",
	[OP_cuFuncGetModule] = "cuFuncGetModule",
	[OP_cuFuncGetParamInfo] = "cuFuncGetParamInfo",
	[OP_cuFuncIsLoaded] = "cuFuncIsLoaded",
	[OP_cuFuncLoad] = "cuFuncLoad",
	[OP_cuOccupancyMaxActiveBlocksPerMultiprocessor] = "cuOccupancyMaxActiveBlocksPerMultiprocessor",
	[OP_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags] = "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags",
	[OP_cuOccupancyAvailableDynamicSMemPerBlock] = "cuOccupancyAvailableDynamicSMemPerBlock",
	[OP_cuMemGetInfo_v2] = "cuMemGetInfo_v2",
	[OP_cuMemAlloc_v2] = "cuMemAlloc_v2",
	[OP_cuMemAllocPitch_v2] = "cuMemAllocPitch_v2",
	[OP_cuMemFree_v2] = "cuMemFree_v2",
	[OP_cuMemAllocAsync] = "cuMemAllocAsync",
	[OP_cuMemFreeAsync] = "cuMemFreeAsync",
	[OP_cuMemcpyDtoD_v2] = "cuMemcpyDtoD_v2",
	[OP_cuMemcpyDtoDAsync_v2] = "cuMemcpyDtoDAsync_v2",
	[OP_cuMemsetD8_v2] = "cuMemsetD8_v2",
	[OP_cuMemsetD16_v2] = "cuMemsetD16_v2",
	[OP_cuMemsetD32_v2] = "cuMemsetD32_v2",
	[OP_cuMemsetD8Async] = "cuMemsetD8Async",
	[OP_cuMemsetD16Async] = "cuMemsetD16Async",
	[OP_cuMemsetD32Async] = "cuMemsetD32Async",
	[OP_cuMemsetD2D8_v2] = "cuMemsetD2D8_v2",
	[OP_cuMemsetD2D16_v2] = "cuMemsetD2D16_v2",
	[OP_cuMemsetD2D32_v2] = "cuMemsetD2D32_v2",
	[OP_cuMemsetD2D8Async] = "cuMemsetD2D8Async",
	[OP_cuMemsetD2D16Async] = "cuMemsetD2D16Async",
	[OP_cuMemsetD2D32Async] = "cuMemsetD2D32Async",
	[OP_cuStreamCreate] = "cuStreamCreate",
	[OP_cuStreamCreateWithPriority] = "cuStreamCreateWithPriority",
	[OP_cuStreamGetPriority] = "cuStreamGetPriority",
	[OP_cuStreamGetFlags] = "cuStreamGetFlags",
	[OP_cuStreamGetId] = "cuStreamGetId",
	[OP_cuStreamGetCtx] = "cuStreamGetCtx",
	[OP_cuStreamWaitEvent] = "cuStreamWaitEvent",
	[OP_cuStreamQuery] = "cuStreamQuery",
	[OP_cuStreamSynchronize] = "cuStreamSynchronize",
	[OP_cuStreamDestroy_v2] = "cuStreamDestroy_v2",
	[OP_cuEventCreate] = "cuEventCreate",
	[OP_cuEventRecord] = "cuEventRecord",
	[OP_cuEventRecordWithFlags] = "cuEventRecordWithFlags",
	[OP_cuEventQuery] = "cuEventQuery",
	[OP_cuEventSynchronize] = "cuEventSynchronize",
	[OP_cuEventDestroy_v2] = "cuEventDestroy_v2",
	[OP_cuEventElapsedTime] = "cuEventElapsedTime",
	[OP_cuEventElapsedTime_v2] = "cuEventElapsedTime_v2",
};
