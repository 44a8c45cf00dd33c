/* Written by tools/generate-cuda from calls.txt; do not edit. */

#pragma once

#include <stddef.h>
#include <stdint.h>

#define DRIVER_CALLS(X) \
	X(cuCtxCreate_v2, (uint64_t *pctx, unsigned flags, int dev)) \
	X(cuCtxDestroy_v2, (uint64_t ctx)) \
	X(cuCtxGetApiVersion, (uint64_t ctx, unsigned *version)) \
	X(cuCtxGetCacheConfig, (int *pconfig)) \
	X(cuCtxGetFlags, (unsigned *flags)) \
	X(cuCtxGetId, (uint64_t ctx, uint64_t *ctxId)) \
	X(cuCtxGetLimit, (size_t *pvalue, int limit)) \
	X(cuCtxGetSharedMemConfig, (int *pConfig)) \
	X(cuCtxGetStreamPriorityRange, (int *leastPriority, int *greatestPriority)) \
	X(cuCtxResetPersistingL2Cache, (void)) \
	X(cuCtxSetCacheConfig, (int config)) \
	X(cuCtxSetCurrent, (uint64_t ctx)) \
	X(cuCtxSetFlags, (unsigned flags)) \
	X(cuCtxSetLimit, (int limit, size_t value)) \
	X(cuCtxSetSharedMemConfig, (int config)) \
	X(cuCtxSynchronize, (void)) \
	X(cuDeviceComputeCapability, (int *major, int *minor, int dev)) \
	X(cuDeviceGet, (int *device, int ordinal)) \
	X(cuDeviceGetAttribute, (int *pi, int attrib, int dev)) \
	X(cuDeviceGetCount, (int *count)) \
	X(cuDeviceGetName, (char *name, int len, int dev)) \
	X(cuDeviceGetPCIBusId, (char *pciBusId, int len, int dev)) \
	X(cuDeviceGetProperties, (void *prop, int dev)) \
	X(cuDeviceGetUuid, (void *uuid, int dev)) \
	X(cuDeviceGetUuid_v2, (void *uuid, int dev)) \
	X(cuDevicePrimaryCtxGetState, (int dev, unsigned *flags, int *active)) \
	X(cuDevicePrimaryCtxRelease_v2, (int dev)) \
	X(cuDevicePrimaryCtxReset_v2, (int dev)) \
	X(cuDevicePrimaryCtxRetain, (uint64_t *pctx, int dev)) \
	X(cuDevicePrimaryCtxSetFlags_v2, (int dev, unsigned flags)) \
	X(cuDeviceTotalMem_v2, (size_t *bytes, int dev)) \
	X(cuDriverGetVersion, (int *driverVersion)) \
	X(cuEventCreate, (uint64_t *phEvent, unsigned Flags)) \
	X(cuEventDestroy_v2, (uint64_t hEvent)) \
	X(cuEventElapsedTime, (float *pMilliseconds, uint64_t hStart, uint64_t hEnd)) \
	X(cuEventElapsedTime_v2, (float *pMilliseconds, uint64_t hStart, uint64_t hEnd)) \
	X(cuEventQuery, (uint64_t hEvent)) \
	X(cuEventRecord, (uint64_t hEvent, uint64_t hStream)) \
	X(cuEventRecordWithFlags, (uint64_t hEvent, uint64_t hStream, unsigned flags)) \
	X(cuEventSynchronize, (uint64_t hEvent)) \
	X(cuFuncGetAttribute, (int *pi, int attrib, uint64_t hfunc)) \
	X(cuFuncGetModule, (uint64_t *hmod, uint64_t hfunc)) \
	X(cuFuncGetName, (const char **name, uint64_t hfunc)) \
	X(cuFuncGetParamInfo, (uint64_t func, size_t paramIndex, size_t *paramOffset, size_t *paramSize)) \
	X(cuFuncIsLoaded, (int *state, uint64_t function)) \
	X(cuFuncLoad, (uint64_t function)) \
	X(cuFuncSetAttribute, (uint64_t hfunc, int attrib, int value)) \
	X(cuFuncSetCacheConfig, (uint64_t hfunc, int config)) \
	X(cuFuncSetSharedMemConfig, (uint64_t hfunc, int config)) \
	X(cuGetErrorName, (int error, const char **pStr)) \
	X(cuInit, (unsigned Flags)) \
	X(cuKernelGetAttribute, (int *pi, int attrib, uint64_t kernel, int dev)) \
	X(cuKernelGetFunction, (uint64_t *pFunc, uint64_t kernel)) \
	X(cuKernelGetLibrary, (uint64_t *pLib, uint64_t kernel)) \
	X(cuKernelGetName, (const char **name, uint64_t hfunc)) \
	X(cuKernelGetParamInfo, (uint64_t kernel, size_t paramIndex, size_t *paramOffset, size_t *paramSize)) \
	X(cuKernelSetAttribute, (int attrib, int val, uint64_t kernel, int dev)) \
	X(cuKernelSetCacheConfig, (uint64_t kernel, int config, int dev)) \
	X(cuLaunchKernel, (uint64_t f, unsigned gridDimX, unsigned gridDimY, unsigned gridDimZ, unsigned blockDimX, unsigned blockDimY, unsigned blockDimZ, unsigned sharedMemBytes, uint64_t hStream, void **kernelParams, void **extra)) \
	X(cuLaunchKernelEx, (const void *config, uint64_t f, void **kernelParams, void **extra)) \
	X(cuLibraryGetGlobal, (uint64_t *dptr, size_t *bytes, uint64_t library, const char *name)) \
	X(cuLibraryGetKernel, (uint64_t *pKernel, uint64_t library, const char *name)) \
	X(cuLibraryGetKernelCount, (unsigned *count, uint64_t lib)) \
	X(cuLibraryGetModule, (uint64_t *pMod, uint64_t library)) \
	X(cuLibraryLoadData, (uint64_t *library, const void *code, int *jitOptions, void **jitOptionsValues, unsigned numJitOptions, int *libraryOptions, void **libraryOptionValues, unsigned numLibraryOptions)) \
	X(cuLibraryUnload, (uint64_t library)) \
	X(cuLinkAddData_v2, (uint64_t state, int type, void *data, size_t size, const char *name, unsigned numOptions, int *options, void **optionValues)) \
	X(cuLinkComplete, (uint64_t state, void **cubinOut, size_t *sizeOut)) \
	X(cuLinkCreate_v2, (unsigned numOptions, int *options, void **optionValues, uint64_t *stateOut)) \
	X(cuLinkDestroy, (uint64_t state)) \
	X(cuMemAllocAsync, (uint64_t *dptr, size_t bytesize, uint64_t hStream)) \
	X(cuMemAllocPitch_v2, (uint64_t *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height, unsigned ElementSizeBytes)) \
	X(cuMemAlloc_v2, (uint64_t *dptr, size_t bytesize)) \
	X(cuMemFreeAsync, (uint64_t dptr, uint64_t hStream)) \
	X(cuMemFree_v2, (uint64_t dptr)) \
	X(cuMemGetInfo_v2, (size_t *free, size_t *total)) \
	X(cuMemcpyDtoDAsync_v2, (uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)) \
	X(cuMemcpyDtoD_v2, (uint64_t dstDevice, uint64_t srcDevice, size_t ByteCount)) \
	X(cuMemcpyDtoHAsync_v2, (void *dstHost, uint64_t srcDevice, size_t ByteCount, uint64_t hStream)) \
	X(cuMemcpyDtoH_v2, (void *dstHost, uint64_t srcDevice, size_t ByteCount)) \
	X(cuMemcpyHtoDAsync_v2, (uint64_t dstDevice, const void *srcHost, size_t ByteCount, uint64_t hStream)) \
	X(cuMemcpyHtoD_v2, (uint64_t dstDevice, const void *srcHost, size_t ByteCount)) \
	X(cuMemsetD16Async, (uint64_t dstDevice, unsigned short us, size_t N, uint64_t hStream)) \
	X(cuMemsetD16_v2, (uint64_t dstDevice, unsigned short us, size_t N)) \
	X(cuMemsetD2D16Async, (uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height, uint64_t hStream)) \
	X(cuMemsetD2D16_v2, (uint64_t dstDevice, size_t dstPitch, unsigned short us, size_t Width, size_t Height)) \
	X(cuMemsetD2D32Async, (uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height, uint64_t hStream)) \
	X(cuMemsetD2D32_v2, (uint64_t dstDevice, size_t dstPitch, unsigned ui, size_t Width, size_t Height)) \
	X(cuMemsetD2D8Async, (uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height, uint64_t hStream)) \
	X(cuMemsetD2D8_v2, (uint64_t dstDevice, size_t dstPitch, unsigned char uc, size_t Width, size_t Height)) \
	X(cuMemsetD32Async, (uint64_t dstDevice, unsigned ui, size_t N, uint64_t hStream)) \
	X(cuMemsetD32_v2, (uint64_t dstDevice, unsigned ui, size_t N)) \
	X(cuMemsetD8Async, (uint64_t dstDevice, unsigned char uc, size_t N, uint64_t hStream)) \
	X(cuMemsetD8_v2, (uint64_t dstDevice, unsigned char uc, size_t N)) \
	X(cuModuleGetFunction, (uint64_t *hfunc, uint64_t hmod, const char *name)) \
	X(cuModuleGetFunctionCount, (unsigned *count, uint64_t mod)) \
	X(cuModuleGetGlobal_v2, (uint64_t *dptr, size_t *bytes, uint64_t hmod, const char *name)) \
	X(cuModuleGetLoadingMode, (int *mode)) \
	X(cuModuleLoadDataEx, (uint64_t *module, const void *image, unsigned numOptions, int *options, void **optionValues)) \
	X(cuModuleUnload, (uint64_t hmod)) \
	X(cuOccupancyAvailableDynamicSMemPerBlock, (size_t *dynamicSmemSize, uint64_t func, int numBlocks, int blockSize)) \
	X(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int *numBlocks, uint64_t func, int blockSize, size_t dynamicSMemSize)) \
	X(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int *numBlocks, uint64_t func, int blockSize, size_t dynamicSMemSize, unsigned flags)) \
	X(cuOccupancyMaxPotentialBlockSizeWithFlags, (int *minGridSize, int *blockSize, uint64_t func, void *blockSizeToDynamicSMemSize, size_t dynamicSMemSize, int blockSizeLimit, unsigned flags)) \
	X(cuStreamCreate, (uint64_t *phStream, unsigned Flags)) \
	X(cuStreamCreateWithPriority, (uint64_t *phStream, unsigned flags, int priority)) \
	X(cuStreamDestroy_v2, (uint64_t hStream)) \
	X(cuStreamGetCtx, (uint64_t hStream, uint64_t *pctx)) \
	X(cuStreamGetFlags, (uint64_t hStream, unsigned *flags)) \
	X(cuStreamGetId, (uint64_t hStream, uint64_t *streamId)) \
	X(cuStreamGetPriority, (uint64_t hStream, int *priority)) \
	X(cuStreamQuery, (uint64_t hStream)) \
	X(cuStreamSynchronize, (uint64_t hStream)) \
	X(cuStreamWaitEvent, (uint64_t hStream, uint64_t hEvent, unsigned Flags))
