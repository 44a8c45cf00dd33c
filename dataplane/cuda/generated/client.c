/* Written by tools/generate-cuda from calls.txt; do not edit. */

#include "client.h"
#include "generated/api.h"

int cuDeviceGetName(char *name, int len, int dev)
{
	struct call call;

	if (!name || len <= 0)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceGetName, 0, dev);
	call_number(&call, (uint64_t)len);
	call_number(&call, 0);
	call_send(&call);
	answer_text(&call, name, (size_t)len);
	return call_end(&call);
}

int cuDeviceGetPCIBusId(char *pciBusId, int len, int dev)
{
	struct call call;

	if (!pciBusId || len <= 0)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceGetPCIBusId, 0, dev);
	call_number(&call, (uint64_t)len);
	call_number(&call, 0);
	call_send(&call);
	answer_text(&call, pciBusId, (size_t)len);
	return call_end(&call);
}

int cuDeviceGetUuid(void *uuid, int dev)
{
	struct call call;

	if (!uuid)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceGetUuid, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, uuid, 16);
	return call_end(&call);
}

int cuDeviceGetUuid_v2(void *uuid, int dev)
{
	struct call call;

	if (!uuid)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceGetUuid_v2, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, uuid, 16);
	return call_end(&call);
}

int cuDeviceTotalMem_v2(size_t *bytes, int dev)
{
	struct call call;

	if (!bytes)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceTotalMem_v2, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, bytes, sizeof *bytes);
	return call_end(&call);
}

int cuDeviceGetProperties(void *prop, int dev)
{
	struct call call;

	if (!prop)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceGetProperties, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, prop, 56);
	return call_end(&call);
}

int cuDeviceComputeCapability(int *major, int *minor, int dev)
{
	struct call call;

	if (!major || !minor)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDeviceComputeCapability, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, major, sizeof *major);
	answer_bytes(&call, minor, sizeof *minor);
	return call_end(&call);
}

int cuDevicePrimaryCtxRetain(uint64_t *pctx, int dev)
{
	struct call call;

	if (!pctx)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDevicePrimaryCtxRetain, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_handle(&call, pctx);
	return call_end(&call);
}

int cuDevicePrimaryCtxRelease_v2(int dev)
{
	struct call call;

	call_on_device(&call, OP_cuDevicePrimaryCtxRelease_v2, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	return call_end(&call);
}

int cuDevicePrimaryCtxReset_v2(int dev)
{
	struct call call;

	call_on_device(&call, OP_cuDevicePrimaryCtxReset_v2, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	return call_end(&call);
}

int cuDevicePrimaryCtxSetFlags_v2(int dev, unsigned flags)
{
	struct call call;

	call_on_device(&call, OP_cuDevicePrimaryCtxSetFlags_v2, 0, dev);
	call_number(&call, 0);
	call_number(&call, (uint64_t)flags);
	call_send(&call);
	return call_end(&call);
}

int cuDevicePrimaryCtxGetState(int dev, unsigned *flags, int *active)
{
	struct call call;

	if (!flags || !active)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuDevicePrimaryCtxGetState, 0, dev);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, flags, sizeof *flags);
	answer_bytes(&call, active, sizeof *active);
	return call_end(&call);
}

int cuCtxSynchronize(void)
{
	struct call call;

	call_in_context(&call, OP_cuCtxSynchronize, CALL_DELIVERS);
	call_send(&call);
	return call_end(&call);
}

int cuCtxGetFlags(unsigned *flags)
{
	struct call call;

	if (!flags)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuCtxGetFlags, 0);
	call_send(&call);
	answer_bytes(&call, flags, sizeof *flags);
	return call_end(&call);
}

int cuCtxSetFlags(unsigned flags)
{
	struct call call;

	call_in_context(&call, OP_cuCtxSetFlags, 0);
	call_number(&call, (uint64_t)flags);
	call_send(&call);
	return call_end(&call);
}

int cuCtxSetLimit(int limit, size_t value)
{
	struct call call;

	call_in_context(&call, OP_cuCtxSetLimit, 0);
	call_number(&call, (uint64_t)limit);
	call_number(&call, (uint64_t)value);
	call_send(&call);
	return call_end(&call);
}

int cuCtxGetLimit(size_t *pvalue, int limit)
{
	struct call call;

	if (!pvalue)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuCtxGetLimit, 0);
	call_number(&call, (uint64_t)limit);
	call_send(&call);
	answer_bytes(&call, pvalue, sizeof *pvalue);
	return call_end(&call);
}

int cuCtxGetCacheConfig(int *pconfig)
{
	struct call call;

	if (!pconfig)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuCtxGetCacheConfig, 0);
	call_send(&call);
	answer_bytes(&call, pconfig, sizeof *pconfig);
	return call_end(&call);
}

int cuCtxSetCacheConfig(int config)
{
	struct call call;

	call_in_context(&call, OP_cuCtxSetCacheConfig, 0);
	call_number(&call, (uint64_t)config);
	call_send(&call);
	return call_end(&call);
}

int cuCtxGetSharedMemConfig(int *pConfig)
{
	struct call call;

	if (!pConfig)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuCtxGetSharedMemConfig, 0);
	call_send(&call);
	answer_bytes(&call, pConfig, sizeof *pConfig);
	return call_end(&call);
}

int cuCtxSetSharedMemConfig(int config)
{
	struct call call;

	call_in_context(&call, OP_cuCtxSetSharedMemConfig, 0);
	call_number(&call, (uint64_t)config);
	call_send(&call);
	return call_end(&call);
}

int cuCtxGetStreamPriorityRange(int *leastPriority, int *greatestPriority)
{
	struct call call;

	call_in_context(&call, OP_cuCtxGetStreamPriorityRange, 0);
	call_send(&call);
	answer_bytes(&call, leastPriority, sizeof *leastPriority);
	answer_bytes(&call, greatestPriority, sizeof *greatestPriority);
	return call_end(&call);
}

int cuCtxResetPersistingL2Cache(void)
{
	struct call call;

	call_in_context(&call, OP_cuCtxResetPersistingL2Cache, 0);
	call_send(&call);
	return call_end(&call);
}

int cuModuleUnload(uint64_t hmod)
{
	struct call call;

	call_in_context(&call, OP_cuModuleUnload, 0);
	call_handle(&call, hmod, HANDLE_MODULE);
	call_send(&call);
	return call_end(&call);
}

int cuModuleGetLoadingMode(int *mode)
{
	struct call call;

	if (!mode)
		return CU_INVALID_VALUE;
	call_anywhere(&call, OP_cuModuleGetLoadingMode, 0);
	call_send(&call);
	answer_bytes(&call, mode, sizeof *mode);
	return call_end(&call);
}

int cuModuleGetFunction(uint64_t *hfunc, uint64_t hmod, const char *name)
{
	struct call call;

	if (!hfunc || !name)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuModuleGetFunction, 0);
	call_handle(&call, hmod, HANDLE_MODULE);
	call_text(&call, name);
	call_send(&call);
	answer_handle(&call, hfunc);
	return call_end(&call);
}

int cuModuleGetFunctionCount(unsigned *count, uint64_t mod)
{
	struct call call;

	if (!count)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuModuleGetFunctionCount, 0);
	call_handle(&call, mod, HANDLE_MODULE);
	call_send(&call);
	answer_bytes(&call, count, sizeof *count);
	return call_end(&call);
}

int cuLibraryUnload(uint64_t library)
{
	struct call call;

	call_on_handle(&call, OP_cuLibraryUnload, 0, library);
	call_handle(&call, library, HANDLE_LIBRARY);
	call_send(&call);
	return call_end(&call);
}

int cuLibraryGetKernel(uint64_t *pKernel, uint64_t library, const char *name)
{
	struct call call;

	if (!pKernel || !name)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_cuLibraryGetKernel, 0, library);
	call_handle(&call, library, HANDLE_LIBRARY);
	call_text(&call, name);
	call_send(&call);
	answer_handle(&call, pKernel);
	return call_end(&call);
}

int cuLibraryGetKernelCount(unsigned *count, uint64_t lib)
{
	struct call call;

	if (!count)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_cuLibraryGetKernelCount, 0, lib);
	call_handle(&call, lib, HANDLE_LIBRARY);
	call_send(&call);
	answer_bytes(&call, count, sizeof *count);
	return call_end(&call);
}

int cuLibraryGetModule(uint64_t *pMod, uint64_t library)
{
	struct call call;

	if (!pMod)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuLibraryGetModule, 0);
	call_handle(&call, library, HANDLE_LIBRARY);
	call_send(&call);
	answer_handle(&call, pMod);
	return call_end(&call);
}

int cuKernelGetFunction(uint64_t *pFunc, uint64_t kernel)
{
	struct call call;

	if (!pFunc)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuKernelGetFunction, 0);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_send(&call);
	answer_handle(&call, pFunc);
	return call_end(&call);
}

int cuKernelGetLibrary(uint64_t *pLib, uint64_t kernel)
{
	struct call call;

	if (!pLib)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_cuKernelGetLibrary, 0, kernel);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_send(&call);
	answer_handle(&call, pLib);
	return call_end(&call);
}

int cuKernelGetParamInfo(uint64_t kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	struct call call;

	if (!paramOffset)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_cuKernelGetParamInfo, 0, kernel);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_number(&call, (uint64_t)paramIndex);
	call_send(&call);
	answer_bytes(&call, paramOffset, sizeof *paramOffset);
	answer_bytes(&call, paramSize, sizeof *paramSize);
	return call_end(&call);
}

int cuKernelGetAttribute(int *pi, int attrib, uint64_t kernel, int dev)
{
	struct call call;

	if (!pi)
		return CU_INVALID_VALUE;
	call_on_device(&call, OP_cuKernelGetAttribute, 0, dev);
	call_number(&call, (uint64_t)attrib);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_number(&call, 0);
	call_send(&call);
	answer_bytes(&call, pi, sizeof *pi);
	return call_end(&call);
}

int cuKernelSetAttribute(int attrib, int val, uint64_t kernel, int dev)
{
	struct call call;

	call_on_device(&call, OP_cuKernelSetAttribute, 0, dev);
	call_number(&call, (uint64_t)attrib);
	call_number(&call, (uint64_t)val);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_number(&call, 0);
	call_send(&call);
	return call_end(&call);
}

int cuKernelSetCacheConfig(uint64_t kernel, int config, int dev)
{
	struct call call;

	call_on_device(&call, OP_cuKernelSetCacheConfig, 0, dev);
	call_handle(&call, kernel, HANDLE_KERNEL);
	call_number(&call, (uint64_t)config);
	call_number(&call, 0);
	call_send(&call);
	return call_end(&call);
}

int cuFuncGetAttribute(int *pi, int attrib, uint64_t hfunc)
{
	struct call call;

	if (!pi)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuFuncGetAttribute, 0);
	call_number(&call, (uint64_t)attrib);
	call_handle(&call, hfunc, HANDLE_FUNCTION);
	call_send(&call);
	answer_bytes(&call, pi, sizeof *pi);
	return call_end(&call);
}

int cuFuncSetAttribute(uint64_t hfunc, int attrib, int value)
{
	struct call call;

	call_in_context(&call, OP_cuFuncSetAttribute, 0);
	call_handle(&call, hfunc, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)attrib);
	call_number(&call, (uint64_t)value);
	call_send(&call);
	return call_end(&call);
}

int cuFuncSetCacheConfig(uint64_t hfunc, int config)
{
	struct call call;

	call_in_context(&call, OP_cuFuncSetCacheConfig, 0);
	call_handle(&call, hfunc, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)config);
	call_send(&call);
	return call_end(&call);
}

int cuFuncSetSharedMemConfig(uint64_t hfunc, int config)
{
	struct call call;

	call_in_context(&call, OP_cuFuncSetSharedMemConfig, 0);
	call_handle(&call, hfunc, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)config);
	call_send(&call);
	return call_end(&call);
}

int cuFuncGetModule(uint64_t *hmod, uint64_t hfunc)
{
	struct call call;

	if (!hmod)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuFuncGetModule, 0);
	call_handle(&call, hfunc, HANDLE_FUNCTION);
	call_send(&call);
	answer_handle(&call, hmod);
	return call_end(&call);
}

int cuFuncGetParamInfo(uint64_t func, size_t paramIndex, size_t *paramOffset, size_t *paramSize)
{
	struct call call;

	if (!paramOffset)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuFuncGetParamInfo, 0);
	call_handle(&call, func, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)paramIndex);
	call_send(&call);
	answer_bytes(&call, paramOffset, sizeof *paramOffset);
	answer_bytes(&call, paramSize, sizeof *paramSize);
	return call_end(&call);
}

int cuFuncIsLoaded(int *state, uint64_t function)
{
	struct call call;

	if (!state)
		return CU_INVALID_VALUE;
	call_on_handle(&call, OP_cuFuncIsLoaded, 0, function);
	call_handle(&call, function, HANDLE_FUNCTION);
	call_send(&call);
	answer_bytes(&call, state, sizeof *state);
	return call_end(&call);
}

int cuFuncLoad(uint64_t function)
{
	struct call call;

	call_in_context(&call, OP_cuFuncLoad, 0);
	call_handle(&call, function, HANDLE_FUNCTION);
	call_send(&call);
	return call_end(&call);
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *numBlocks, uint64_t func, int blockSize, size_t dynamicSMemSize)
{
	struct call call;

	if (!numBlocks)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuOccupancyMaxActiveBlocksPerMultiprocessor, 0);
	call_handle(&call, func, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)blockSize);
	call_number(&call, (uint64_t)dynamicSMemSize);
	call_send(&call);
	answer_bytes(&call, numBlocks, sizeof *numBlocks);
	return call_end(&call);
}

int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *numBlocks, uint64_t func, int blockSize, size_t dynamicSMemSize, unsigned flags)
{
	struct call call;

	if (!numBlocks)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, 0);
	call_handle(&call, func, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)blockSize);
	call_number(&call, (uint64_t)dynamicSMemSize);
	call_number(&call, (uint64_t)flags);
	call_send(&call);
	answer_bytes(&call, numBlocks, sizeof *numBlocks);
	return call_end(&call);
}

int cuOccupancyAvailableDynamicSMemPerBlock(size_t *dynamicSmemSize, uint64_t func, int numBlocks, int blockSize)
{
	struct call call;

	if (!dynamicSmemSize)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuOccupancyAvailableDynamicSMemPerBlock, 0);
	call_handle(&call, func, HANDLE_FUNCTION);
	call_number(&call, (uint64_t)numBlocks);
	call_number(&call, (uint64_t)blockSize);
	call_send(&call);
	answer_bytes(&call, dynamicSmemSize, sizeof *dynamicSmemSize);
	return call_end(&call);
}

int cuMemGetInfo_v2(size_t *free, size_t *total)
{
	struct call call;

	if (!free || !total)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuMemGetInfo_v2, 0);
	call_send(&call);
	answer_bytes(&call, free, sizeof *free);
	answer_bytes(&call, total, sizeof *total);
	return call_end(&call);
}

int cuMemcpyDtoD_v2(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount)
{
	struct call call;

	call_in_context(&call, OP_cuMemcpyDtoD_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)srcDevice);
	call_number(&call, (uint64_t)ByteCount);
	call_send(&call);
	return call_end(&call);
}

int cuMemcpyDtoDAsync_v2(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemcpyDtoDAsync_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)srcDevice);
	call_number(&call, (uint64_t)ByteCount);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD8_v2(uint64_t dstDevice, unsigned char uc, size_t N)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD8_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)uc);
	call_number(&call, (uint64_t)N);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD16_v2(uint64_t dstDevice, unsigned short us, size_t N)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD16_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)us);
	call_number(&call, (uint64_t)N);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD32_v2(uint64_t dstDevice, unsigned ui, size_t N)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD32_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)ui);
	call_number(&call, (uint64_t)N);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD8Async(uint64_t dstDevice, unsigned char uc, size_t N, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD8Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)uc);
	call_number(&call, (uint64_t)N);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD16Async(uint64_t dstDevice, unsigned short us, size_t N, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD16Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)us);
	call_number(&call, (uint64_t)N);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD32Async(uint64_t dstDevice, unsigned ui, size_t N, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD32Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)ui);
	call_number(&call, (uint64_t)N);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D8_v2(uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D8_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)uc);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D16_v2(uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D16_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)us);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D32_v2(uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D32_v2, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)ui);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D8Async(uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D8Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)uc);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D16Async(uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D16Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)us);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuMemsetD2D32Async(uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuMemsetD2D32Async, CALL_ASYNC);
	call_number(&call, (uint64_t)dstDevice);
	call_number(&call, (uint64_t)dstPitch);
	call_number(&call, (uint64_t)ui);
	call_number(&call, (uint64_t)Width);
	call_number(&call, (uint64_t)Height);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuStreamCreate(uint64_t *phStream, unsigned Flags)
{
	struct call call;

	if (!phStream)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamCreate, 0);
	call_number(&call, (uint64_t)Flags);
	call_send(&call);
	answer_handle(&call, phStream);
	return call_end(&call);
}

int cuStreamCreateWithPriority(uint64_t *phStream, unsigned flags, int priority)
{
	struct call call;

	if (!phStream)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamCreateWithPriority, 0);
	call_number(&call, (uint64_t)flags);
	call_number(&call, (uint64_t)priority);
	call_send(&call);
	answer_handle(&call, phStream);
	return call_end(&call);
}

int cuStreamGetPriority(uint64_t hStream, int *priority)
{
	struct call call;

	if (!priority)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamGetPriority, 0);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	answer_bytes(&call, priority, sizeof *priority);
	return call_end(&call);
}

int cuStreamGetFlags(uint64_t hStream, unsigned *flags)
{
	struct call call;

	if (!flags)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamGetFlags, 0);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	answer_bytes(&call, flags, sizeof *flags);
	return call_end(&call);
}

int cuStreamGetId(uint64_t hStream, uint64_t *streamId)
{
	struct call call;

	if (!streamId)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamGetId, 0);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	answer_bytes(&call, streamId, sizeof *streamId);
	return call_end(&call);
}

int cuStreamGetCtx(uint64_t hStream, uint64_t *pctx)
{
	struct call call;

	if (!pctx)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuStreamGetCtx, 0);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	answer_handle(&call, pctx);
	return call_end(&call);
}

int cuStreamWaitEvent(uint64_t hStream, uint64_t hEvent, unsigned Flags)
{
	struct call call;

	call_in_context(&call, OP_cuStreamWaitEvent, CALL_ASYNC);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_number(&call, (uint64_t)Flags);
	call_send(&call);
	return call_end(&call);
}

int cuStreamQuery(uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuStreamQuery, CALL_DELIVERS);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuStreamSynchronize(uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuStreamSynchronize, CALL_DELIVERS);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuStreamDestroy_v2(uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuStreamDestroy_v2, CALL_ASYNC);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuEventCreate(uint64_t *phEvent, unsigned Flags)
{
	struct call call;

	if (!phEvent)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuEventCreate, 0);
	call_number(&call, (uint64_t)Flags);
	call_send(&call);
	answer_handle(&call, phEvent);
	return call_end(&call);
}

int cuEventRecord(uint64_t hEvent, uint64_t hStream)
{
	struct call call;

	call_in_context(&call, OP_cuEventRecord, CALL_ASYNC);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_send(&call);
	return call_end(&call);
}

int cuEventRecordWithFlags(uint64_t hEvent, uint64_t hStream, unsigned flags)
{
	struct call call;

	call_in_context(&call, OP_cuEventRecordWithFlags, CALL_ASYNC);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_handle(&call, hStream, HANDLE_STREAM);
	call_number(&call, (uint64_t)flags);
	call_send(&call);
	return call_end(&call);
}

int cuEventQuery(uint64_t hEvent)
{
	struct call call;

	call_in_context(&call, OP_cuEventQuery, CALL_DELIVERS);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_send(&call);
	return call_end(&call);
}

int cuEventSynchronize(uint64_t hEvent)
{
	struct call call;

	call_in_context(&call, OP_cuEventSynchronize, CALL_DELIVERS);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_send(&call);
	return call_end(&call);
}

int cuEventDestroy_v2(uint64_t hEvent)
{
	struct call call;

	call_in_context(&call, OP_cuEventDestroy_v2, CALL_ASYNC);
	call_handle(&call, hEvent, HANDLE_EVENT);
	call_send(&call);
	return call_end(&call);
}

int cuEventElapsedTime(float *pMilliseconds, uint64_t hStart, uint64_t hEnd)
{
	struct call call;

	if (!pMilliseconds)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuEventElapsedTime, CALL_DELIVERS);
	call_handle(&call, hStart, HANDLE_EVENT);
	call_handle(&call, hEnd, HANDLE_EVENT);
	call_send(&call);
	answer_bytes(&call, pMilliseconds, sizeof *pMilliseconds);
	return call_end(&call);
}

int cuEventElapsedTime_v2(float *pMilliseconds, uint64_t hStart, uint64_t hEnd)
{
	struct call call;

	if (!pMilliseconds)
		return CU_INVALID_VALUE;
	call_in_context(&call, OP_cuEventElapsedTime_v2, CALL_DELIVERS);
	call_handle(&call, hStart, HANDLE_EVENT);
	call_handle(&call, hEnd, HANDLE_EVENT);
	call_send(&call);
	answer_bytes(&call, pMilliseconds, sizeof *pMilliseconds);
	return call_end(&call);
}

int cuLaunchKernel_ptsz(uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX, unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream, void **kernelParams, void **extra)
{
	return cuLaunchKernel(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, stream_of_thread(hStream), kernelParams, extra);
}

int cuLaunchKernelEx_ptsz(const void *config, uint64_t f, void **kernelParams, void **extra)
{
	return cuLaunchKernelEx(config, f, kernelParams, extra);
}

int cuLaunchCooperativeKernel_ptsz(uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX, unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream, void **kernelParams)
{
	return cuLaunchCooperativeKernel(f, gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes, stream_of_thread(hStream), kernelParams);
}

int cuMemAllocAsync_ptsz(uint64_t *dptr, size_t bytesize, uint64_t hStream)
{
	return cuMemAllocAsync(dptr, bytesize, stream_of_thread(hStream));
}

int cuMemFreeAsync_ptsz(uint64_t dptr, uint64_t hStream)
{
	return cuMemFreeAsync(dptr, stream_of_thread(hStream));
}

int cuMemcpyHtoD_v2_ptds(uint64_t dstDevice, const void *srcHost, size_t ByteCount)
{
	return cuMemcpyHtoD_v2(dstDevice, srcHost, ByteCount);
}

int cuMemcpyHtoDAsync_v2_ptsz(uint64_t dstDevice, const void *srcHost, size_t ByteCount, uint64_t hStream)
{
	return cuMemcpyHtoDAsync_v2(dstDevice, srcHost, ByteCount, stream_of_thread(hStream));
}

int cuMemcpyDtoH_v2_ptds(void *dstHost, uint64_t srcDevice, size_t ByteCount)
{
	return cuMemcpyDtoH_v2(dstHost, srcDevice, ByteCount);
}

int cuMemcpyDtoHAsync_v2_ptsz(void *dstHost, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	return cuMemcpyDtoHAsync_v2(dstHost, srcDevice, ByteCount, stream_of_thread(hStream));
}

int cuMemcpy_ptds(uint64_t dst, uint64_t src, size_t ByteCount)
{
	return cuMemcpy(dst, src, ByteCount);
}

int cuMemcpyAsync_ptsz(uint64_t dst, uint64_t src, size_t ByteCount, uint64_t hStream)
{
	return cuMemcpyAsync(dst, src, ByteCount, stream_of_thread(hStream));
}

int cuMemcpy2D_v2_ptds(const void *pCopy)
{
	return cuMemcpy2D_v2(pCopy);
}

int cuMemcpy2DUnaligned_v2_ptds(const void *pCopy)
{
	return cuMemcpy2DUnaligned_v2(pCopy);
}

int cuMemcpy2DAsync_v2_ptsz(const void *pCopy, uint64_t hStream)
{
	return cuMemcpy2DAsync_v2(pCopy, stream_of_thread(hStream));
}

int cuMemcpyDtoD_v2_ptds(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount)
{
	return cuMemcpyDtoD_v2(dstDevice, srcDevice, ByteCount);
}

int cuMemcpyDtoDAsync_v2_ptsz(uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)
{
	return cuMemcpyDtoDAsync_v2(dstDevice, srcDevice, ByteCount, stream_of_thread(hStream));
}

int cuMemsetD8_v2_ptds(uint64_t dstDevice, unsigned char uc, size_t N)
{
	return cuMemsetD8_v2(dstDevice, uc, N);
}

int cuMemsetD16_v2_ptds(uint64_t dstDevice, unsigned short us, size_t N)
{
	return cuMemsetD16_v2(dstDevice, us, N);
}

int cuMemsetD32_v2_ptds(uint64_t dstDevice, unsigned ui, size_t N)
{
	return cuMemsetD32_v2(dstDevice, ui, N);
}

int cuMemsetD8Async_ptsz(uint64_t dstDevice, unsigned char uc, size_t N, uint64_t hStream)
{
	return cuMemsetD8Async(dstDevice, uc, N, stream_of_thread(hStream));
}

int cuMemsetD16Async_ptsz(uint64_t dstDevice, unsigned short us, size_t N, uint64_t hStream)
{
	return cuMemsetD16Async(dstDevice, us, N, stream_of_thread(hStream));
}

int cuMemsetD32Async_ptsz(uint64_t dstDevice, unsigned ui, size_t N, uint64_t hStream)
{
	return cuMemsetD32Async(dstDevice, ui, N, stream_of_thread(hStream));
}

int cuMemsetD2D8_v2_ptds(uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height)
{
	return cuMemsetD2D8_v2(dstDevice, dstPitch, uc, Width, Height);
}

int cuMemsetD2D16_v2_ptds(uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height)
{
	return cuMemsetD2D16_v2(dstDevice, dstPitch, us, Width, Height);
}

int cuMemsetD2D32_v2_ptds(uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height)
{
	return cuMemsetD2D32_v2(dstDevice, dstPitch, ui, Width, Height);
}

int cuMemsetD2D8Async_ptsz(uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height, uint64_t hStream)
{
	return cuMemsetD2D8Async(dstDevice, dstPitch, uc, Width, Height, stream_of_thread(hStream));
}

int cuMemsetD2D16Async_ptsz(uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height, uint64_t hStream)
{
	return cuMemsetD2D16Async(dstDevice, dstPitch, us, Width, Height, stream_of_thread(hStream));
}

int cuMemsetD2D32Async_ptsz(uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height, uint64_t hStream)
{
	return cuMemsetD2D32Async(dstDevice, dstPitch, ui, Width, Height, stream_of_thread(hStream));
}

int cuStreamGetPriority_ptsz(uint64_t hStream, int *priority)
{
	return cuStreamGetPriority(stream_of_thread(hStream), priority);
}

int cuStreamGetFlags_ptsz(uint64_t hStream, unsigned *flags)
{
	return cuStreamGetFlags(stream_of_thread(hStream), flags);
}

int cuStreamGetId_ptsz(uint64_t hStream, uint64_t *streamId)
{
	return cuStreamGetId(stream_of_thread(hStream), streamId);
}

int cuStreamGetCtx_ptsz(uint64_t hStream, uint64_t *pctx)
{
	return cuStreamGetCtx(stream_of_thread(hStream), pctx);
}

int cuStreamWaitEvent_ptsz(uint64_t hStream, uint64_t hEvent, unsigned Flags)
{
	return cuStreamWaitEvent(stream_of_thread(hStream), hEvent, Flags);
}

int cuStreamQuery_ptsz(uint64_t hStream)
{
	return cuStreamQuery(stream_of_thread(hStream));
}

int cuStreamSynchronize_ptsz(uint64_t hStream)
{
	return cuStreamSynchronize(stream_of_thread(hStream));
}

int cuEventRecord_ptsz(uint64_t hEvent, uint64_t hStream)
{
	return cuEventRecord(hEvent, stream_of_thread(hStream));
}

int cuEventRecordWithFlags_ptsz(uint64_t hEvent, uint64_t hStream, unsigned flags)
{
	return cuEventRecordWithFlags(hEvent, stream_of_thread(hStream), flags);
}

int cuDevicePrimaryCtxRelease(int dev)
{
	return cuDevicePrimaryCtxRelease_v2(dev);
}

int cuDevicePrimaryCtxReset(int dev)
{
	return cuDevicePrimaryCtxReset_v2(dev);
}

int cuDevicePrimaryCtxSetFlags(int dev, unsigned flags)
{
	return cuDevicePrimaryCtxSetFlags_v2(dev, flags);
}

int cuCtxDestroy(uint64_t ctx)
{
	return cuCtxDestroy_v2(ctx);
}

int cuCtxPushCurrent(uint64_t ctx)
{
	return cuCtxPushCurrent_v2(ctx);
}

int cuCtxPopCurrent(uint64_t *pctx)
{
	return cuCtxPopCurrent_v2(pctx);
}

int cuLinkCreate(unsigned numOptions, int *options, void **optionValues, uint64_t *stateOut)
{
	return cuLinkCreate_v2(numOptions, options, optionValues, stateOut);
}

int cuLinkAddData(uint64_t state, int type, void *data, size_t size, const char *name, unsigned numOptions, int *options, void **optionValues)
{
	return cuLinkAddData_v2(state, type, data, size, name, numOptions, options, optionValues);
}

int cuLinkAddFile(uint64_t state, int type, const char *path, unsigned numOptions, int *options, void **optionValues)
{
	return cuLinkAddFile_v2(state, type, path, numOptions, options, optionValues);
}

int cuMemHostRegister(void *p, size_t bytesize, unsigned Flags)
{
	return cuMemHostRegister_v2(p, bytesize, Flags);
}

int cuStreamDestroy(uint64_t hStream)
{
	return cuStreamDestroy_v2(hStream);
}

int cuEventDestroy(uint64_t hEvent)
{
	return cuEventDestroy_v2(hEvent);
}
