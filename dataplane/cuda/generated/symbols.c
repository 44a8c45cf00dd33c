/* Written by tools/generate-cuda from calls.txt; do not edit. */

#include "symbols.h"
#include "generated/api.h"

UNSUPPORTED(cuArray3DCreate)
UNSUPPORTED(cuArray3DCreate_v2)
UNSUPPORTED(cuArray3DGetDescriptor)
UNSUPPORTED(cuArray3DGetDescriptor_v2)
UNSUPPORTED(cuArrayCreate)
UNSUPPORTED(cuArrayCreate_v2)
UNSUPPORTED(cuArrayDestroy)
UNSUPPORTED(cuArrayGetDescriptor)
UNSUPPORTED(cuArrayGetDescriptor_v2)
UNSUPPORTED(cuArrayGetMemoryRequirements)
UNSUPPORTED(cuArrayGetPlane)
UNSUPPORTED(cuArrayGetSparseProperties)
UNSUPPORTED(cuCheckpointProcessCheckpoint)
UNSUPPORTED(cuCheckpointProcessGetRestoreThreadId)
UNSUPPORTED(cuCheckpointProcessGetState)
UNSUPPORTED(cuCheckpointProcessLock)
UNSUPPORTED(cuCheckpointProcessRestore)
UNSUPPORTED(cuCheckpointProcessUnlock)
UNSUPPORTED(cuCoredumpGetAttribute)
UNSUPPORTED(cuCoredumpGetAttributeGlobal)
UNSUPPORTED(cuCoredumpSetAttribute)
UNSUPPORTED(cuCoredumpSetAttributeGlobal)
UNSUPPORTED(cuCtxAttach)
UNSUPPORTED(cuCtxCreate)
UNSUPPORTED(cuCtxDetach)
UNSUPPORTED(cuCtxDisablePeerAccess)
UNSUPPORTED(cuCtxEnablePeerAccess)
UNSUPPORTED(cuCtxFromGreenCtx)
UNSUPPORTED(cuCtxGetDevResource)
UNSUPPORTED(cuCtxGetExecAffinity)
UNSUPPORTED(cuCtxRecordEvent)
UNSUPPORTED(cuCtxWaitEvent)
UNSUPPORTED(cuDestroyExternalMemory)
UNSUPPORTED(cuDestroyExternalSemaphore)
UNSUPPORTED(cuDevResourceGenerateDesc)
UNSUPPORTED(cuDevSmResourceSplitByCount)
UNSUPPORTED(cuDeviceGetDefaultMemPool)
UNSUPPORTED(cuDeviceGetDevResource)
UNSUPPORTED(cuDeviceGetExecAffinitySupport)
UNSUPPORTED(cuDeviceGetGraphMemAttribute)
UNSUPPORTED(cuDeviceGetLuid)
UNSUPPORTED(cuDeviceGetMemPool)
UNSUPPORTED(cuDeviceGetNvSciSyncAttributes)
UNSUPPORTED(cuDeviceGetP2PAttribute)
UNSUPPORTED(cuDeviceGetTexture1DLinearMaxWidth)
UNSUPPORTED(cuDeviceGraphMemTrim)
UNSUPPORTED(cuDeviceRegisterAsyncNotification)
UNSUPPORTED(cuDeviceSetGraphMemAttribute)
UNSUPPORTED(cuDeviceSetMemPool)
UNSUPPORTED(cuDeviceTotalMem)
UNSUPPORTED(cuDeviceUnregisterAsyncNotification)
UNSUPPORTED(cuExternalMemoryGetMappedBuffer)
UNSUPPORTED(cuExternalMemoryGetMappedMipmappedArray)
UNSUPPORTED(cuFlushGPUDirectRDMAWrites)
UNSUPPORTED(cuFuncSetBlockShape)
UNSUPPORTED(cuFuncSetSharedSize)
UNSUPPORTED(cuGraphAddBatchMemOpNode)
UNSUPPORTED(cuGraphAddChildGraphNode)
UNSUPPORTED(cuGraphAddDependencies)
UNSUPPORTED(cuGraphAddDependencies_v2)
UNSUPPORTED(cuGraphAddEmptyNode)
UNSUPPORTED(cuGraphAddEventRecordNode)
UNSUPPORTED(cuGraphAddEventWaitNode)
UNSUPPORTED(cuGraphAddExternalSemaphoresSignalNode)
UNSUPPORTED(cuGraphAddExternalSemaphoresWaitNode)
UNSUPPORTED(cuGraphAddHostNode)
UNSUPPORTED(cuGraphAddKernelNode)
UNSUPPORTED(cuGraphAddKernelNode_v2)
UNSUPPORTED(cuGraphAddMemAllocNode)
UNSUPPORTED(cuGraphAddMemFreeNode)
UNSUPPORTED(cuGraphAddMemcpyNode)
UNSUPPORTED(cuGraphAddMemsetNode)
UNSUPPORTED(cuGraphAddNode)
UNSUPPORTED(cuGraphAddNode_v2)
UNSUPPORTED(cuGraphBatchMemOpNodeGetParams)
UNSUPPORTED(cuGraphBatchMemOpNodeSetParams)
UNSUPPORTED(cuGraphChildGraphNodeGetGraph)
UNSUPPORTED(cuGraphClone)
UNSUPPORTED(cuGraphConditionalHandleCreate)
UNSUPPORTED(cuGraphCreate)
UNSUPPORTED(cuGraphDebugDotPrint)
UNSUPPORTED(cuGraphDestroy)
UNSUPPORTED(cuGraphDestroyNode)
UNSUPPORTED(cuGraphEventRecordNodeGetEvent)
UNSUPPORTED(cuGraphEventRecordNodeSetEvent)
UNSUPPORTED(cuGraphEventWaitNodeGetEvent)
UNSUPPORTED(cuGraphEventWaitNodeSetEvent)
UNSUPPORTED(cuGraphExecBatchMemOpNodeSetParams)
UNSUPPORTED(cuGraphExecChildGraphNodeSetParams)
UNSUPPORTED(cuGraphExecDestroy)
UNSUPPORTED(cuGraphExecEventRecordNodeSetEvent)
UNSUPPORTED(cuGraphExecEventWaitNodeSetEvent)
UNSUPPORTED(cuGraphExecExternalSemaphoresSignalNodeSetParams)
UNSUPPORTED(cuGraphExecExternalSemaphoresWaitNodeSetParams)
UNSUPPORTED(cuGraphExecGetFlags)
UNSUPPORTED(cuGraphExecHostNodeSetParams)
UNSUPPORTED(cuGraphExecKernelNodeSetParams)
UNSUPPORTED(cuGraphExecKernelNodeSetParams_v2)
UNSUPPORTED(cuGraphExecMemcpyNodeSetParams)
UNSUPPORTED(cuGraphExecMemsetNodeSetParams)
UNSUPPORTED(cuGraphExecNodeSetParams)
UNSUPPORTED(cuGraphExecUpdate)
UNSUPPORTED(cuGraphExecUpdate_v2)
UNSUPPORTED(cuGraphExternalSemaphoresSignalNodeGetParams)
UNSUPPORTED(cuGraphExternalSemaphoresSignalNodeSetParams)
UNSUPPORTED(cuGraphExternalSemaphoresWaitNodeGetParams)
UNSUPPORTED(cuGraphExternalSemaphoresWaitNodeSetParams)
UNSUPPORTED(cuGraphGetEdges)
UNSUPPORTED(cuGraphGetEdges_v2)
UNSUPPORTED(cuGraphGetNodes)
UNSUPPORTED(cuGraphGetRootNodes)
UNSUPPORTED(cuGraphHostNodeGetParams)
UNSUPPORTED(cuGraphHostNodeSetParams)
UNSUPPORTED(cuGraphInstantiate)
UNSUPPORTED(cuGraphInstantiateWithFlags)
UNSUPPORTED(cuGraphInstantiateWithParams)
UNSUPPORTED(cuGraphInstantiateWithParams_ptsz)
UNSUPPORTED(cuGraphInstantiate_v2)
UNSUPPORTED(cuGraphKernelNodeCopyAttributes)
UNSUPPORTED(cuGraphKernelNodeGetAttribute)
UNSUPPORTED(cuGraphKernelNodeGetParams)
UNSUPPORTED(cuGraphKernelNodeGetParams_v2)
UNSUPPORTED(cuGraphKernelNodeSetAttribute)
UNSUPPORTED(cuGraphKernelNodeSetParams)
UNSUPPORTED(cuGraphKernelNodeSetParams_v2)
UNSUPPORTED(cuGraphLaunch)
UNSUPPORTED(cuGraphLaunch_ptsz)
UNSUPPORTED(cuGraphMemAllocNodeGetParams)
UNSUPPORTED(cuGraphMemFreeNodeGetParams)
UNSUPPORTED(cuGraphMemcpyNodeGetParams)
UNSUPPORTED(cuGraphMemcpyNodeSetParams)
UNSUPPORTED(cuGraphMemsetNodeGetParams)
UNSUPPORTED(cuGraphMemsetNodeSetParams)
UNSUPPORTED(cuGraphNodeFindInClone)
UNSUPPORTED(cuGraphNodeGetDependencies)
UNSUPPORTED(cuGraphNodeGetDependencies_v2)
UNSUPPORTED(cuGraphNodeGetDependentNodes)
UNSUPPORTED(cuGraphNodeGetDependentNodes_v2)
UNSUPPORTED(cuGraphNodeGetEnabled)
UNSUPPORTED(cuGraphNodeGetType)
UNSUPPORTED(cuGraphNodeSetEnabled)
UNSUPPORTED(cuGraphNodeSetParams)
UNSUPPORTED(cuGraphReleaseUserObject)
UNSUPPORTED(cuGraphRemoveDependencies)
UNSUPPORTED(cuGraphRemoveDependencies_v2)
UNSUPPORTED(cuGraphRetainUserObject)
UNSUPPORTED(cuGraphUpload)
UNSUPPORTED(cuGraphUpload_ptsz)
UNSUPPORTED(cuGraphicsMapResources)
UNSUPPORTED(cuGraphicsMapResources_ptsz)
UNSUPPORTED(cuGraphicsResourceGetMappedMipmappedArray)
UNSUPPORTED(cuGraphicsResourceGetMappedPointer)
UNSUPPORTED(cuGraphicsResourceGetMappedPointer_v2)
UNSUPPORTED(cuGraphicsResourceSetMapFlags)
UNSUPPORTED(cuGraphicsResourceSetMapFlags_v2)
UNSUPPORTED(cuGraphicsSubResourceGetMappedArray)
UNSUPPORTED(cuGraphicsUnmapResources)
UNSUPPORTED(cuGraphicsUnmapResources_ptsz)
UNSUPPORTED(cuGraphicsUnregisterResource)
UNSUPPORTED(cuGreenCtxCreate)
UNSUPPORTED(cuGreenCtxDestroy)
UNSUPPORTED(cuGreenCtxGetDevResource)
UNSUPPORTED(cuGreenCtxRecordEvent)
UNSUPPORTED(cuGreenCtxStreamCreate)
UNSUPPORTED(cuGreenCtxWaitEvent)
UNSUPPORTED(cuImportExternalMemory)
UNSUPPORTED(cuImportExternalSemaphore)
UNSUPPORTED(cuIpcCloseMemHandle)
UNSUPPORTED(cuIpcGetEventHandle)
UNSUPPORTED(cuIpcGetMemHandle)
UNSUPPORTED(cuIpcOpenEventHandle)
UNSUPPORTED(cuIpcOpenMemHandle)
UNSUPPORTED(cuIpcOpenMemHandle_v2)
UNSUPPORTED(cuLaunch)
UNSUPPORTED(cuLaunchCooperativeKernelMultiDevice)
UNSUPPORTED(cuLaunchGrid)
UNSUPPORTED(cuLaunchGridAsync)
UNSUPPORTED(cuLaunchHostFunc)
UNSUPPORTED(cuLaunchHostFunc_ptsz)
UNSUPPORTED(cuLibraryEnumerateKernels)
UNSUPPORTED(cuLibraryGetManaged)
UNSUPPORTED(cuLibraryGetUnifiedFunction)
UNSUPPORTED(cuLogsCurrent)
UNSUPPORTED(cuLogsDumpToFile)
UNSUPPORTED(cuLogsDumpToMemory)
UNSUPPORTED(cuLogsRegisterCallback)
UNSUPPORTED(cuLogsUnregisterCallback)
UNSUPPORTED(cuMemAddressFree)
UNSUPPORTED(cuMemAddressReserve)
UNSUPPORTED(cuMemAdvise)
UNSUPPORTED(cuMemAdvise_v2)
UNSUPPORTED(cuMemAlloc)
UNSUPPORTED(cuMemAllocFromPoolAsync)
UNSUPPORTED(cuMemAllocFromPoolAsync_ptsz)
UNSUPPORTED(cuMemAllocHost)
UNSUPPORTED(cuMemAllocManaged)
UNSUPPORTED(cuMemAllocPitch)
UNSUPPORTED(cuMemBatchDecompressAsync)
UNSUPPORTED(cuMemBatchDecompressAsync_ptsz)
UNSUPPORTED(cuMemCreate)
UNSUPPORTED(cuMemExportToShareableHandle)
UNSUPPORTED(cuMemFree)
UNSUPPORTED(cuMemGetAccess)
UNSUPPORTED(cuMemGetAddressRange)
UNSUPPORTED(cuMemGetAllocationGranularity)
UNSUPPORTED(cuMemGetAllocationPropertiesFromHandle)
UNSUPPORTED(cuMemGetHandleForAddressRange)
UNSUPPORTED(cuMemGetInfo)
UNSUPPORTED(cuMemHostGetDevicePointer)
UNSUPPORTED(cuMemHostGetDevicePointer_v2)
UNSUPPORTED(cuMemImportFromShareableHandle)
UNSUPPORTED(cuMemMap)
UNSUPPORTED(cuMemMapArrayAsync)
UNSUPPORTED(cuMemMapArrayAsync_ptsz)
UNSUPPORTED(cuMemPoolCreate)
UNSUPPORTED(cuMemPoolDestroy)
UNSUPPORTED(cuMemPoolExportPointer)
UNSUPPORTED(cuMemPoolExportToShareableHandle)
UNSUPPORTED(cuMemPoolGetAccess)
UNSUPPORTED(cuMemPoolGetAttribute)
UNSUPPORTED(cuMemPoolImportFromShareableHandle)
UNSUPPORTED(cuMemPoolImportPointer)
UNSUPPORTED(cuMemPoolSetAccess)
UNSUPPORTED(cuMemPoolSetAttribute)
UNSUPPORTED(cuMemPoolTrimTo)
UNSUPPORTED(cuMemPrefetchAsync)
UNSUPPORTED(cuMemPrefetchAsync_ptsz)
UNSUPPORTED(cuMemPrefetchAsync_v2)
UNSUPPORTED(cuMemPrefetchAsync_v2_ptsz)
UNSUPPORTED(cuMemRangeGetAttribute)
UNSUPPORTED(cuMemRangeGetAttributes)
UNSUPPORTED(cuMemRelease)
UNSUPPORTED(cuMemRetainAllocationHandle)
UNSUPPORTED(cuMemSetAccess)
UNSUPPORTED(cuMemUnmap)
UNSUPPORTED(cuMemcpy2D)
UNSUPPORTED(cuMemcpy2DAsync)
UNSUPPORTED(cuMemcpy2DUnaligned)
UNSUPPORTED(cuMemcpy3D)
UNSUPPORTED(cuMemcpy3DAsync)
UNSUPPORTED(cuMemcpy3DAsync_v2)
UNSUPPORTED(cuMemcpy3DAsync_v2_ptsz)
UNSUPPORTED(cuMemcpy3DBatchAsync)
UNSUPPORTED(cuMemcpy3DBatchAsync_ptsz)
UNSUPPORTED(cuMemcpy3DPeer)
UNSUPPORTED(cuMemcpy3DPeerAsync)
UNSUPPORTED(cuMemcpy3DPeerAsync_ptsz)
UNSUPPORTED(cuMemcpy3DPeer_ptds)
UNSUPPORTED(cuMemcpy3D_v2)
UNSUPPORTED(cuMemcpy3D_v2_ptds)
UNSUPPORTED(cuMemcpyAtoA)
UNSUPPORTED(cuMemcpyAtoA_v2)
UNSUPPORTED(cuMemcpyAtoA_v2_ptds)
UNSUPPORTED(cuMemcpyAtoD)
UNSUPPORTED(cuMemcpyAtoD_v2)
UNSUPPORTED(cuMemcpyAtoD_v2_ptds)
UNSUPPORTED(cuMemcpyAtoH)
UNSUPPORTED(cuMemcpyAtoHAsync)
UNSUPPORTED(cuMemcpyAtoHAsync_v2)
UNSUPPORTED(cuMemcpyAtoHAsync_v2_ptsz)
UNSUPPORTED(cuMemcpyAtoH_v2)
UNSUPPORTED(cuMemcpyAtoH_v2_ptds)
UNSUPPORTED(cuMemcpyBatchAsync)
UNSUPPORTED(cuMemcpyBatchAsync_ptsz)
UNSUPPORTED(cuMemcpyDtoA)
UNSUPPORTED(cuMemcpyDtoA_v2)
UNSUPPORTED(cuMemcpyDtoA_v2_ptds)
UNSUPPORTED(cuMemcpyDtoD)
UNSUPPORTED(cuMemcpyDtoDAsync)
UNSUPPORTED(cuMemcpyDtoH)
UNSUPPORTED(cuMemcpyDtoHAsync)
UNSUPPORTED(cuMemcpyHtoA)
UNSUPPORTED(cuMemcpyHtoAAsync)
UNSUPPORTED(cuMemcpyHtoAAsync_v2)
UNSUPPORTED(cuMemcpyHtoAAsync_v2_ptsz)
UNSUPPORTED(cuMemcpyHtoA_v2)
UNSUPPORTED(cuMemcpyHtoA_v2_ptds)
UNSUPPORTED(cuMemcpyHtoD)
UNSUPPORTED(cuMemcpyHtoDAsync)
UNSUPPORTED(cuMemcpyPeer)
UNSUPPORTED(cuMemcpyPeerAsync)
UNSUPPORTED(cuMemcpyPeerAsync_ptsz)
UNSUPPORTED(cuMemcpyPeer_ptds)
UNSUPPORTED(cuMemsetD16)
UNSUPPORTED(cuMemsetD2D16)
UNSUPPORTED(cuMemsetD2D32)
UNSUPPORTED(cuMemsetD2D8)
UNSUPPORTED(cuMemsetD32)
UNSUPPORTED(cuMemsetD8)
UNSUPPORTED(cuMipmappedArrayCreate)
UNSUPPORTED(cuMipmappedArrayDestroy)
UNSUPPORTED(cuMipmappedArrayGetLevel)
UNSUPPORTED(cuMipmappedArrayGetMemoryRequirements)
UNSUPPORTED(cuMipmappedArrayGetSparseProperties)
UNSUPPORTED(cuModuleEnumerateFunctions)
UNSUPPORTED(cuModuleGetGlobal)
UNSUPPORTED(cuModuleGetSurfRef)
UNSUPPORTED(cuModuleGetTexRef)
UNSUPPORTED(cuMulticastAddDevice)
UNSUPPORTED(cuMulticastBindAddr)
UNSUPPORTED(cuMulticastBindMem)
UNSUPPORTED(cuMulticastCreate)
UNSUPPORTED(cuMulticastGetGranularity)
UNSUPPORTED(cuMulticastUnbind)
UNSUPPORTED(cuOccupancyMaxActiveClusters)
UNSUPPORTED(cuOccupancyMaxPotentialClusterSize)
UNSUPPORTED(cuParamSetSize)
UNSUPPORTED(cuParamSetTexRef)
UNSUPPORTED(cuParamSetf)
UNSUPPORTED(cuParamSeti)
UNSUPPORTED(cuParamSetv)
UNSUPPORTED(cuPointerSetAttribute)
UNSUPPORTED(cuSignalExternalSemaphoresAsync)
UNSUPPORTED(cuSignalExternalSemaphoresAsync_ptsz)
UNSUPPORTED(cuStreamAddCallback)
UNSUPPORTED(cuStreamAddCallback_ptsz)
UNSUPPORTED(cuStreamAttachMemAsync)
UNSUPPORTED(cuStreamAttachMemAsync_ptsz)
UNSUPPORTED(cuStreamBatchMemOp)
UNSUPPORTED(cuStreamBatchMemOp_ptsz)
UNSUPPORTED(cuStreamBatchMemOp_v2)
UNSUPPORTED(cuStreamBatchMemOp_v2_ptsz)
UNSUPPORTED(cuStreamBeginCapture)
UNSUPPORTED(cuStreamBeginCaptureToGraph)
UNSUPPORTED(cuStreamBeginCaptureToGraph_ptsz)
UNSUPPORTED(cuStreamBeginCapture_ptsz)
UNSUPPORTED(cuStreamBeginCapture_v2)
UNSUPPORTED(cuStreamBeginCapture_v2_ptsz)
UNSUPPORTED(cuStreamCopyAttributes)
UNSUPPORTED(cuStreamCopyAttributes_ptsz)
UNSUPPORTED(cuStreamEndCapture)
UNSUPPORTED(cuStreamEndCapture_ptsz)
UNSUPPORTED(cuStreamGetAttribute)
UNSUPPORTED(cuStreamGetAttribute_ptsz)
UNSUPPORTED(cuStreamGetCaptureInfo)
UNSUPPORTED(cuStreamGetCaptureInfo_ptsz)
UNSUPPORTED(cuStreamGetCaptureInfo_v2)
UNSUPPORTED(cuStreamGetCaptureInfo_v2_ptsz)
UNSUPPORTED(cuStreamGetCaptureInfo_v3)
UNSUPPORTED(cuStreamGetCaptureInfo_v3_ptsz)
UNSUPPORTED(cuStreamGetCtx_v2)
UNSUPPORTED(cuStreamGetCtx_v2_ptsz)
UNSUPPORTED(cuStreamGetDevice)
UNSUPPORTED(cuStreamGetDevice_ptsz)
UNSUPPORTED(cuStreamGetGreenCtx)
UNSUPPORTED(cuStreamIsCapturing)
UNSUPPORTED(cuStreamIsCapturing_ptsz)
UNSUPPORTED(cuStreamSetAttribute)
UNSUPPORTED(cuStreamSetAttribute_ptsz)
UNSUPPORTED(cuStreamUpdateCaptureDependencies)
UNSUPPORTED(cuStreamUpdateCaptureDependencies_ptsz)
UNSUPPORTED(cuStreamUpdateCaptureDependencies_v2)
UNSUPPORTED(cuStreamUpdateCaptureDependencies_v2_ptsz)
UNSUPPORTED(cuStreamWaitValue32)
UNSUPPORTED(cuStreamWaitValue32_ptsz)
UNSUPPORTED(cuStreamWaitValue32_v2)
UNSUPPORTED(cuStreamWaitValue32_v2_ptsz)
UNSUPPORTED(cuStreamWaitValue64)
UNSUPPORTED(cuStreamWaitValue64_ptsz)
UNSUPPORTED(cuStreamWaitValue64_v2)
UNSUPPORTED(cuStreamWaitValue64_v2_ptsz)
UNSUPPORTED(cuStreamWriteValue32)
UNSUPPORTED(cuStreamWriteValue32_ptsz)
UNSUPPORTED(cuStreamWriteValue32_v2)
UNSUPPORTED(cuStreamWriteValue32_v2_ptsz)
UNSUPPORTED(cuStreamWriteValue64)
UNSUPPORTED(cuStreamWriteValue64_ptsz)
UNSUPPORTED(cuStreamWriteValue64_v2)
UNSUPPORTED(cuStreamWriteValue64_v2_ptsz)
UNSUPPORTED(cuSurfObjectCreate)
UNSUPPORTED(cuSurfObjectDestroy)
UNSUPPORTED(cuSurfObjectGetResourceDesc)
UNSUPPORTED(cuSurfRefGetArray)
UNSUPPORTED(cuSurfRefSetArray)
UNSUPPORTED(cuTensorMapEncodeIm2col)
UNSUPPORTED(cuTensorMapEncodeIm2colWide)
UNSUPPORTED(cuTensorMapEncodeTiled)
UNSUPPORTED(cuTensorMapReplaceAddress)
UNSUPPORTED(cuTexObjectCreate)
UNSUPPORTED(cuTexObjectDestroy)
UNSUPPORTED(cuTexObjectGetResourceDesc)
UNSUPPORTED(cuTexObjectGetResourceViewDesc)
UNSUPPORTED(cuTexObjectGetTextureDesc)
UNSUPPORTED(cuTexRefCreate)
UNSUPPORTED(cuTexRefDestroy)
UNSUPPORTED(cuTexRefGetAddress)
UNSUPPORTED(cuTexRefGetAddressMode)
UNSUPPORTED(cuTexRefGetAddress_v2)
UNSUPPORTED(cuTexRefGetArray)
UNSUPPORTED(cuTexRefGetBorderColor)
UNSUPPORTED(cuTexRefGetFilterMode)
UNSUPPORTED(cuTexRefGetFlags)
UNSUPPORTED(cuTexRefGetFormat)
UNSUPPORTED(cuTexRefGetMaxAnisotropy)
UNSUPPORTED(cuTexRefGetMipmapFilterMode)
UNSUPPORTED(cuTexRefGetMipmapLevelBias)
UNSUPPORTED(cuTexRefGetMipmapLevelClamp)
UNSUPPORTED(cuTexRefGetMipmappedArray)
UNSUPPORTED(cuTexRefSetAddress)
UNSUPPORTED(cuTexRefSetAddress2D)
UNSUPPORTED(cuTexRefSetAddress2D_v2)
UNSUPPORTED(cuTexRefSetAddress2D_v3)
UNSUPPORTED(cuTexRefSetAddressMode)
UNSUPPORTED(cuTexRefSetAddress_v2)
UNSUPPORTED(cuTexRefSetArray)
UNSUPPORTED(cuTexRefSetBorderColor)
UNSUPPORTED(cuTexRefSetFilterMode)
UNSUPPORTED(cuTexRefSetFlags)
UNSUPPORTED(cuTexRefSetFormat)
UNSUPPORTED(cuTexRefSetMaxAnisotropy)
UNSUPPORTED(cuTexRefSetMipmapFilterMode)
UNSUPPORTED(cuTexRefSetMipmapLevelBias)
UNSUPPORTED(cuTexRefSetMipmapLevelClamp)
UNSUPPORTED(cuTexRefSetMipmappedArray)
UNSUPPORTED(cuThreadExchangeStreamCaptureMode)
UNSUPPORTED(cuUserObjectCreate)
UNSUPPORTED(cuUserObjectRelease)
UNSUPPORTED(cuUserObjectRetain)
UNSUPPORTED(cuWaitExternalSemaphoresAsync)
UNSUPPORTED(cuWaitExternalSemaphoresAsync_ptsz)

const struct symbol symbols[] = {
	{"cuArray3DCreate", 2000, false, (void *)cuArray3DCreate},
	{"cuArray3DCreate", 3020, false, (void *)cuArray3DCreate_v2},
	{"cuArray3DGetDescriptor", 2000, false, (void *)cuArray3DGetDescriptor},
	{"cuArray3DGetDescriptor", 3020, false, (void *)cuArray3DGetDescriptor_v2},
	{"cuArrayCreate", 2000, false, (void *)cuArrayCreate},
	{"cuArrayCreate", 3020, false, (void *)cuArrayCreate_v2},
	{"cuArrayDestroy", 2000, false, (void *)cuArrayDestroy},
	{"cuArrayGetDescriptor", 2000, false, (void *)cuArrayGetDescriptor},
	{"cuArrayGetDescriptor", 3020, false, (void *)cuArrayGetDescriptor_v2},
	{"cuArrayGetMemoryRequirements", 11060, false, (void *)cuArrayGetMemoryRequirements},
	{"cuArrayGetPlane", 11020, false, (void *)cuArrayGetPlane},
	{"cuArrayGetSparseProperties", 11010, false, (void *)cuArrayGetSparseProperties},
	{"cuCheckpointProcessCheckpoint", 12080, false, (void *)cuCheckpointProcessCheckpoint},
	{"cuCheckpointProcessGetRestoreThreadId", 12080, false, (void *)cuCheckpointProcessGetRestoreThreadId},
	{"cuCheckpointProcessGetState", 12080, false, (void *)cuCheckpointProcessGetState},
	{"cuCheckpointProcessLock", 12080, false, (void *)cuCheckpointProcessLock},
	{"cuCheckpointProcessRestore", 12080, false, (void *)cuCheckpointProcessRestore},
	{"cuCheckpointProcessUnlock", 12080, false, (void *)cuCheckpointProcessUnlock},
	{"cuCoredumpGetAttribute", 12010, false, (void *)cuCoredumpGetAttribute},
	{"cuCoredumpGetAttributeGlobal", 12010, false, (void *)cuCoredumpGetAttributeGlobal},
	{"cuCoredumpSetAttribute", 12010, false, (void *)cuCoredumpSetAttribute},
	{"cuCoredumpSetAttributeGlobal", 12010, false, (void *)cuCoredumpSetAttributeGlobal},
	{"cuCtxAttach", 2000, false, (void *)cuCtxAttach},
	{"cuCtxCreate", 2000, false, (void *)cuCtxCreate},
	{"cuCtxCreate", 3020, false, (void *)cuCtxCreate_v2},
	{"cuCtxCreate", 11040, false, (void *)cuCtxCreate_v3},
	{"cuCtxCreate", 12050, false, (void *)cuCtxCreate_v4},
	{"cuCtxDestroy", 2000, false, (void *)cuCtxDestroy},
	{"cuCtxDestroy", 4000, false, (void *)cuCtxDestroy_v2},
	{"cuCtxDetach", 2000, false, (void *)cuCtxDetach},
	{"cuCtxDisablePeerAccess", 4000, false, (void *)cuCtxDisablePeerAccess},
	{"cuCtxEnablePeerAccess", 4000, false, (void *)cuCtxEnablePeerAccess},
	{"cuCtxFromGreenCtx", 12040, false, (void *)cuCtxFromGreenCtx},
	{"cuCtxGetApiVersion", 3020, false, (void *)cuCtxGetApiVersion},
	{"cuCtxGetCacheConfig", 3020, false, (void *)cuCtxGetCacheConfig},
	{"cuCtxGetCurrent", 4000, false, (void *)cuCtxGetCurrent},
	{"cuCtxGetDevResource", 12040, false, (void *)cuCtxGetDevResource},
	{"cuCtxGetDevice", 2000, false, (void *)cuCtxGetDevice},
	{"cuCtxGetExecAffinity", 11040, false, (void *)cuCtxGetExecAffinity},
	{"cuCtxGetFlags", 7000, false, (void *)cuCtxGetFlags},
	{"cuCtxGetId", 12000, false, (void *)cuCtxGetId},
	{"cuCtxGetLimit", 3010, false, (void *)cuCtxGetLimit},
	{"cuCtxGetSharedMemConfig", 4020, false, (void *)cuCtxGetSharedMemConfig},
	{"cuCtxGetStreamPriorityRange", 5050, false, (void *)cuCtxGetStreamPriorityRange},
	{"cuCtxPopCurrent", 2000, false, (void *)cuCtxPopCurrent},
	{"cuCtxPopCurrent", 4000, false, (void *)cuCtxPopCurrent_v2},
	{"cuCtxPushCurrent", 2000, false, (void *)cuCtxPushCurrent},
	{"cuCtxPushCurrent", 4000, false, (void *)cuCtxPushCurrent_v2},
	{"cuCtxRecordEvent", 12050, false, (void *)cuCtxRecordEvent},
	{"cuCtxResetPersistingL2Cache", 11000, false, (void *)cuCtxResetPersistingL2Cache},
	{"cuCtxSetCacheConfig", 3020, false, (void *)cuCtxSetCacheConfig},
	{"cuCtxSetCurrent", 4000, false, (void *)cuCtxSetCurrent},
	{"cuCtxSetFlags", 12010, false, (void *)cuCtxSetFlags},
	{"cuCtxSetLimit", 3010, false, (void *)cuCtxSetLimit},
	{"cuCtxSetSharedMemConfig", 4020, false, (void *)cuCtxSetSharedMemConfig},
	{"cuCtxSynchronize", 2000, false, (void *)cuCtxSynchronize},
	{"cuCtxWaitEvent", 12050, false, (void *)cuCtxWaitEvent},
	{"cuDestroyExternalMemory", 10000, false, (void *)cuDestroyExternalMemory},
	{"cuDestroyExternalSemaphore", 10000, false, (void *)cuDestroyExternalSemaphore},
	{"cuDevResourceGenerateDesc", 12040, false, (void *)cuDevResourceGenerateDesc},
	{"cuDevSmResourceSplitByCount", 12040, false, (void *)cuDevSmResourceSplitByCount},
	{"cuDeviceCanAccessPeer", 4000, false, (void *)cuDeviceCanAccessPeer},
	{"cuDeviceComputeCapability", 2000, false, (void *)cuDeviceComputeCapability},
	{"cuDeviceGet", 2000, false, (void *)cuDeviceGet},
	{"cuDeviceGetAttribute", 2000, false, (void *)cuDeviceGetAttribute},
	{"cuDeviceGetByPCIBusId", 4010, false, (void *)cuDeviceGetByPCIBusId},
	{"cuDeviceGetCount", 2000, false, (void *)cuDeviceGetCount},
	{"cuDeviceGetDefaultMemPool", 11020, false, (void *)cuDeviceGetDefaultMemPool},
	{"cuDeviceGetDevResource", 12040, false, (void *)cuDeviceGetDevResource},
	{"cuDeviceGetExecAffinitySupport", 11040, false, (void *)cuDeviceGetExecAffinitySupport},
	{"cuDeviceGetGraphMemAttribute", 11040, false, (void *)cuDeviceGetGraphMemAttribute},
	{"cuDeviceGetLuid", 10000, false, (void *)cuDeviceGetLuid},
	{"cuDeviceGetMemPool", 11020, false, (void *)cuDeviceGetMemPool},
	{"cuDeviceGetName", 2000, false, (void *)cuDeviceGetName},
	{"cuDeviceGetNvSciSyncAttributes", 10020, false, (void *)cuDeviceGetNvSciSyncAttributes},
	{"cuDeviceGetP2PAttribute", 8000, false, (void *)cuDeviceGetP2PAttribute},
	{"cuDeviceGetPCIBusId", 4010, false, (void *)cuDeviceGetPCIBusId},
	{"cuDeviceGetProperties", 2000, false, (void *)cuDeviceGetProperties},
	{"cuDeviceGetTexture1DLinearMaxWidth", 11010, false, (void *)cuDeviceGetTexture1DLinearMaxWidth},
	{"cuDeviceGetUuid", 9020, false, (void *)cuDeviceGetUuid},
	{"cuDeviceGetUuid", 11040, false, (void *)cuDeviceGetUuid_v2},
	{"cuDeviceGraphMemTrim", 11040, false, (void *)cuDeviceGraphMemTrim},
	{"cuDevicePrimaryCtxGetState", 7000, false, (void *)cuDevicePrimaryCtxGetState},
	{"cuDevicePrimaryCtxRelease", 7000, false, (void *)cuDevicePrimaryCtxRelease},
	{"cuDevicePrimaryCtxRelease", 11000, false, (void *)cuDevicePrimaryCtxRelease_v2},
	{"cuDevicePrimaryCtxReset", 7000, false, (void *)cuDevicePrimaryCtxReset},
	{"cuDevicePrimaryCtxReset", 11000, false, (void *)cuDevicePrimaryCtxReset_v2},
	{"cuDevicePrimaryCtxRetain", 7000, false, (void *)cuDevicePrimaryCtxRetain},
	{"cuDevicePrimaryCtxSetFlags", 7000, false, (void *)cuDevicePrimaryCtxSetFlags},
	{"cuDevicePrimaryCtxSetFlags", 11000, false, (void *)cuDevicePrimaryCtxSetFlags_v2},
	{"cuDeviceRegisterAsyncNotification", 12040, false, (void *)cuDeviceRegisterAsyncNotification},
	{"cuDeviceSetGraphMemAttribute", 11040, false, (void *)cuDeviceSetGraphMemAttribute},
	{"cuDeviceSetMemPool", 11020, false, (void *)cuDeviceSetMemPool},
	{"cuDeviceTotalMem", 2000, false, (void *)cuDeviceTotalMem},
	{"cuDeviceTotalMem", 3020, false, (void *)cuDeviceTotalMem_v2},
	{"cuDeviceUnregisterAsyncNotification", 12040, false, (void *)cuDeviceUnregisterAsyncNotification},
	{"cuDriverGetVersion", 2020, false, (void *)cuDriverGetVersion},
	{"cuEventCreate", 2000, false, (void *)cuEventCreate},
	{"cuEventDestroy", 2000, false, (void *)cuEventDestroy},
	{"cuEventDestroy", 4000, false, (void *)cuEventDestroy_v2},
	{"cuEventElapsedTime", 2000, false, (void *)cuEventElapsedTime},
	{"cuEventElapsedTime", 12080, false, (void *)cuEventElapsedTime_v2},
	{"cuEventQuery", 2000, false, (void *)cuEventQuery},
	{"cuEventRecord", 2000, false, (void *)cuEventRecord},
	{"cuEventRecord", 7000, true, (void *)cuEventRecord_ptsz},
	{"cuEventRecordWithFlags", 11010, false, (void *)cuEventRecordWithFlags},
	{"cuEventRecordWithFlags", 11010, true, (void *)cuEventRecordWithFlags_ptsz},
	{"cuEventSynchronize", 2000, false, (void *)cuEventSynchronize},
	{"cuExternalMemoryGetMappedBuffer", 10000, false, (void *)cuExternalMemoryGetMappedBuffer},
	{"cuExternalMemoryGetMappedMipmappedArray", 10000, false, (void *)cuExternalMemoryGetMappedMipmappedArray},
	{"cuFlushGPUDirectRDMAWrites", 11030, false, (void *)cuFlushGPUDirectRDMAWrites},
	{"cuFuncGetAttribute", 2020, false, (void *)cuFuncGetAttribute},
	{"cuFuncGetModule", 11000, false, (void *)cuFuncGetModule},
	{"cuFuncGetName", 12030, false, (void *)cuFuncGetName},
	{"cuFuncGetParamInfo", 12040, false, (void *)cuFuncGetParamInfo},
	{"cuFuncIsLoaded", 12040, false, (void *)cuFuncIsLoaded},
	{"cuFuncLoad", 12040, false, (void *)cuFuncLoad},
	{"cuFuncSetAttribute", 9000, false, (void *)cuFuncSetAttribute},
	{"cuFuncSetBlockShape", 2000, false, (void *)cuFuncSetBlockShape},
	{"cuFuncSetCacheConfig", 3000, false, (void *)cuFuncSetCacheConfig},
	{"cuFuncSetSharedMemConfig", 4020, false, (void *)cuFuncSetSharedMemConfig},
	{"cuFuncSetSharedSize", 2000, false, (void *)cuFuncSetSharedSize},
	{"cuGetErrorName", 6000, false, (void *)cuGetErrorName},
	{"cuGetErrorString", 6000, false, (void *)cuGetErrorString},
	{"cuGetExportTable", 3000, false, (void *)cuGetExportTable},
	{"cuGetProcAddress", 11030, false, (void *)cuGetProcAddress},
	{"cuGetProcAddress", 12000, false, (void *)cuGetProcAddress_v2},
	{"cuGraphAddBatchMemOpNode", 11070, false, (void *)cuGraphAddBatchMemOpNode},
	{"cuGraphAddChildGraphNode", 10000, false, (void *)cuGraphAddChildGraphNode},
	{"cuGraphAddDependencies", 10000, false, (void *)cuGraphAddDependencies},
	{"cuGraphAddDependencies", 12030, false, (void *)cuGraphAddDependencies_v2},
	{"cuGraphAddEmptyNode", 10000, false, (void *)cuGraphAddEmptyNode},
	{"cuGraphAddEventRecordNode", 11010, false, (void *)cuGraphAddEventRecordNode},
	{"cuGraphAddEventWaitNode", 11010, false, (void *)cuGraphAddEventWaitNode},
	{"cuGraphAddExternalSemaphoresSignalNode", 11020, false, (void *)cuGraphAddExternalSemaphoresSignalNode},
	{"cuGraphAddExternalSemaphoresWaitNode", 11020, false, (void *)cuGraphAddExternalSemaphoresWaitNode},
	{"cuGraphAddHostNode", 10000, false, (void *)cuGraphAddHostNode},
	{"cuGraphAddKernelNode", 10000, false, (void *)cuGraphAddKernelNode},
	{"cuGraphAddKernelNode", 12000, false, (void *)cuGraphAddKernelNode_v2},
	{"cuGraphAddMemAllocNode", 11040, false, (void *)cuGraphAddMemAllocNode},
	{"cuGraphAddMemFreeNode", 11040, false, (void *)cuGraphAddMemFreeNode},
	{"cuGraphAddMemcpyNode", 10000, false, (void *)cuGraphAddMemcpyNode},
	{"cuGraphAddMemsetNode", 10000, false, (void *)cuGraphAddMemsetNode},
	{"cuGraphAddNode", 12020, false, (void *)cuGraphAddNode},
	{"cuGraphAddNode", 12030, false, (void *)cuGraphAddNode_v2},
	{"cuGraphBatchMemOpNodeGetParams", 11070, false, (void *)cuGraphBatchMemOpNodeGetParams},
	{"cuGraphBatchMemOpNodeSetParams", 11070, false, (void *)cuGraphBatchMemOpNodeSetParams},
	{"cuGraphChildGraphNodeGetGraph", 10000, false, (void *)cuGraphChildGraphNodeGetGraph},
	{"cuGraphClone", 10000, false, (void *)cuGraphClone},
	{"cuGraphConditionalHandleCreate", 12030, false, (void *)cuGraphConditionalHandleCreate},
	{"cuGraphCreate", 10000, false, (void *)cuGraphCreate},
	{"cuGraphDebugDotPrint", 11030, false, (void *)cuGraphDebugDotPrint},
	{"cuGraphDestroy", 10000, false, (void *)cuGraphDestroy},
	{"cuGraphDestroyNode", 10000, false, (void *)cuGraphDestroyNode},
	{"cuGraphEventRecordNodeGetEvent", 11010, false, (void *)cuGraphEventRecordNodeGetEvent},
	{"cuGraphEventRecordNodeSetEvent", 11010, false, (void *)cuGraphEventRecordNodeSetEvent},
	{"cuGraphEventWaitNodeGetEvent", 11010, false, (void *)cuGraphEventWaitNodeGetEvent},
	{"cuGraphEventWaitNodeSetEvent", 11010, false, (void *)cuGraphEventWaitNodeSetEvent},
	{"cuGraphExecBatchMemOpNodeSetParams", 11070, false, (void *)cuGraphExecBatchMemOpNodeSetParams},
	{"cuGraphExecChildGraphNodeSetParams", 11010, false, (void *)cuGraphExecChildGraphNodeSetParams},
	{"cuGraphExecDestroy", 10000, false, (void *)cuGraphExecDestroy},
	{"cuGraphExecEventRecordNodeSetEvent", 11010, false, (void *)cuGraphExecEventRecordNodeSetEvent},
	{"cuGraphExecEventWaitNodeSetEvent", 11010, false, (void *)cuGraphExecEventWaitNodeSetEvent},
	{"cuGraphExecExternalSemaphoresSignalNodeSetParams", 11020, false, (void *)cuGraphExecExternalSemaphoresSignalNodeSetParams},
	{"cuGraphExecExternalSemaphoresWaitNodeSetParams", 11020, false, (void *)cuGraphExecExternalSemaphoresWaitNodeSetParams},
	{"cuGraphExecGetFlags", 12000, false, (void *)cuGraphExecGetFlags},
	{"cuGraphExecHostNodeSetParams", 10020, false, (void *)cuGraphExecHostNodeSetParams},
	{"cuGraphExecKernelNodeSetParams", 10010, false, (void *)cuGraphExecKernelNodeSetParams},
	{"cuGraphExecKernelNodeSetParams", 12000, false, (void *)cuGraphExecKernelNodeSetParams_v2},
	{"cuGraphExecMemcpyNodeSetParams", 10020, false, (void *)cuGraphExecMemcpyNodeSetParams},
	{"cuGraphExecMemsetNodeSetParams", 10020, false, (void *)cuGraphExecMemsetNodeSetParams},
	{"cuGraphExecNodeSetParams", 12020, false, (void *)cuGraphExecNodeSetParams},
	{"cuGraphExecUpdate", 10020, false, (void *)cuGraphExecUpdate},
	{"cuGraphExecUpdate", 12000, false, (void *)cuGraphExecUpdate_v2},
	{"cuGraphExternalSemaphoresSignalNodeGetParams", 11020, false, (void *)cuGraphExternalSemaphoresSignalNodeGetParams},
	{"cuGraphExternalSemaphoresSignalNodeSetParams", 11020, false, (void *)cuGraphExternalSemaphoresSignalNodeSetParams},
	{"cuGraphExternalSemaphoresWaitNodeGetParams", 11020, false, (void *)cuGraphExternalSemaphoresWaitNodeGetParams},
	{"cuGraphExternalSemaphoresWaitNodeSetParams", 11020, false, (void *)cuGraphExternalSemaphoresWaitNodeSetParams},
	{"cuGraphGetEdges", 10000, false, (void *)cuGraphGetEdges},
	{"cuGraphGetEdges", 12030, false, (void *)cuGraphGetEdges_v2},
	{"cuGraphGetNodes", 10000, false, (void *)cuGraphGetNodes},
	{"cuGraphGetRootNodes", 10000, false, (void *)cuGraphGetRootNodes},
	{"cuGraphHostNodeGetParams", 10000, false, (void *)cuGraphHostNodeGetParams},
	{"cuGraphHostNodeSetParams", 10000, false, (void *)cuGraphHostNodeSetParams},
	{"cuGraphInstantiate", 10000, false, (void *)cuGraphInstantiate},
	{"cuGraphInstantiate", 11000, false, (void *)cuGraphInstantiate_v2},
	{"cuGraphInstantiateWithFlags", 11040, false, (void *)cuGraphInstantiateWithFlags},
	{"cuGraphInstantiateWithParams", 12000, false, (void *)cuGraphInstantiateWithParams},
	{"cuGraphInstantiateWithParams", 12000, true, (void *)cuGraphInstantiateWithParams_ptsz},
	{"cuGraphKernelNodeCopyAttributes", 11000, false, (void *)cuGraphKernelNodeCopyAttributes},
	{"cuGraphKernelNodeGetAttribute", 11000, false, (void *)cuGraphKernelNodeGetAttribute},
	{"cuGraphKernelNodeGetParams", 10000, false, (void *)cuGraphKernelNodeGetParams},
	{"cuGraphKernelNodeGetParams", 12000, false, (void *)cuGraphKernelNodeGetParams_v2},
	{"cuGraphKernelNodeSetAttribute", 11000, false, (void *)cuGraphKernelNodeSetAttribute},
	{"cuGraphKernelNodeSetParams", 10000, false, (void *)cuGraphKernelNodeSetParams},
	{"cuGraphKernelNodeSetParams", 12000, false, (void *)cuGraphKernelNodeSetParams_v2},
	{"cuGraphLaunch", 10000, false, (void *)cuGraphLaunch},
	{"cuGraphLaunch", 10000, true, (void *)cuGraphLaunch_ptsz},
	{"cuGraphMemAllocNodeGetParams", 11040, false, (void *)cuGraphMemAllocNodeGetParams},
	{"cuGraphMemFreeNodeGetParams", 11040, false, (void *)cuGraphMemFreeNodeGetParams},
	{"cuGraphMemcpyNodeGetParams", 10000, false, (void *)cuGraphMemcpyNodeGetParams},
	{"cuGraphMemcpyNodeSetParams", 10000, false, (void *)cuGraphMemcpyNodeSetParams},
	{"cuGraphMemsetNodeGetParams", 10000, false, (void *)cuGraphMemsetNodeGetParams},
	{"cuGraphMemsetNodeSetParams", 10000, false, (void *)cuGraphMemsetNodeSetParams},
	{"cuGraphNodeFindInClone", 10000, false, (void *)cuGraphNodeFindInClone},
	{"cuGraphNodeGetDependencies", 10000, false, (void *)cuGraphNodeGetDependencies},
	{"cuGraphNodeGetDependencies", 12030, false, (void *)cuGraphNodeGetDependencies_v2},
	{"cuGraphNodeGetDependentNodes", 10000, false, (void *)cuGraphNodeGetDependentNodes},
	{"cuGraphNodeGetDependentNodes", 12030, false, (void *)cuGraphNodeGetDependentNodes_v2},
	{"cuGraphNodeGetEnabled", 11060, false, (void *)cuGraphNodeGetEnabled},
	{"cuGraphNodeGetType", 10000, false, (void *)cuGraphNodeGetType},
	{"cuGraphNodeSetEnabled", 11060, false, (void *)cuGraphNodeSetEnabled},
	{"cuGraphNodeSetParams", 12020, false, (void *)cuGraphNodeSetParams},
	{"cuGraphReleaseUserObject", 11030, false, (void *)cuGraphReleaseUserObject},
	{"cuGraphRemoveDependencies", 10000, false, (void *)cuGraphRemoveDependencies},
	{"cuGraphRemoveDependencies", 12030, false, (void *)cuGraphRemoveDependencies_v2},
	{"cuGraphRetainUserObject", 11030, false, (void *)cuGraphRetainUserObject},
	{"cuGraphUpload", 11010, false, (void *)cuGraphUpload},
	{"cuGraphUpload", 11010, true, (void *)cuGraphUpload_ptsz},
	{"cuGraphicsMapResources", 3000, false, (void *)cuGraphicsMapResources},
	{"cuGraphicsMapResources", 7000, true, (void *)cuGraphicsMapResources_ptsz},
	{"cuGraphicsResourceGetMappedMipmappedArray", 5000, false, (void *)cuGraphicsResourceGetMappedMipmappedArray},
	{"cuGraphicsResourceGetMappedPointer", 3000, false, (void *)cuGraphicsResourceGetMappedPointer},
	{"cuGraphicsResourceGetMappedPointer", 3020, false, (void *)cuGraphicsResourceGetMappedPointer_v2},
	{"cuGraphicsResourceSetMapFlags", 3000, false, (void *)cuGraphicsResourceSetMapFlags},
	{"cuGraphicsResourceSetMapFlags", 6050, false, (void *)cuGraphicsResourceSetMapFlags_v2},
	{"cuGraphicsSubResourceGetMappedArray", 3000, false, (void *)cuGraphicsSubResourceGetMappedArray},
	{"cuGraphicsUnmapResources", 3000, false, (void *)cuGraphicsUnmapResources},
	{"cuGraphicsUnmapResources", 7000, true, (void *)cuGraphicsUnmapResources_ptsz},
	{"cuGraphicsUnregisterResource", 3000, false, (void *)cuGraphicsUnregisterResource},
	{"cuGreenCtxCreate", 12040, false, (void *)cuGreenCtxCreate},
	{"cuGreenCtxDestroy", 12040, false, (void *)cuGreenCtxDestroy},
	{"cuGreenCtxGetDevResource", 12040, false, (void *)cuGreenCtxGetDevResource},
	{"cuGreenCtxRecordEvent", 12040, false, (void *)cuGreenCtxRecordEvent},
	{"cuGreenCtxStreamCreate", 12050, false, (void *)cuGreenCtxStreamCreate},
	{"cuGreenCtxWaitEvent", 12040, false, (void *)cuGreenCtxWaitEvent},
	{"cuImportExternalMemory", 10000, false, (void *)cuImportExternalMemory},
	{"cuImportExternalSemaphore", 10000, false, (void *)cuImportExternalSemaphore},
	{"cuInit", 2000, false, (void *)cuInit},
	{"cuIpcCloseMemHandle", 4010, false, (void *)cuIpcCloseMemHandle},
	{"cuIpcGetEventHandle", 4010, false, (void *)cuIpcGetEventHandle},
	{"cuIpcGetMemHandle", 4010, false, (void *)cuIpcGetMemHandle},
	{"cuIpcOpenEventHandle", 4010, false, (void *)cuIpcOpenEventHandle},
	{"cuIpcOpenMemHandle", 4010, false, (void *)cuIpcOpenMemHandle},
	{"cuIpcOpenMemHandle", 11000, false, (void *)cuIpcOpenMemHandle_v2},
	{"cuKernelGetAttribute", 12000, false, (void *)cuKernelGetAttribute},
	{"cuKernelGetFunction", 12000, false, (void *)cuKernelGetFunction},
	{"cuKernelGetLibrary", 12050, false, (void *)cuKernelGetLibrary},
	{"cuKernelGetName", 12030, false, (void *)cuKernelGetName},
	{"cuKernelGetParamInfo", 12040, false, (void *)cuKernelGetParamInfo},
	{"cuKernelSetAttribute", 12000, false, (void *)cuKernelSetAttribute},
	{"cuKernelSetCacheConfig", 12000, false, (void *)cuKernelSetCacheConfig},
	{"cuLaunch", 2000, false, (void *)cuLaunch},
	{"cuLaunchCooperativeKernel", 9000, false, (void *)cuLaunchCooperativeKernel},
	{"cuLaunchCooperativeKernel", 9000, true, (void *)cuLaunchCooperativeKernel_ptsz},
	{"cuLaunchCooperativeKernelMultiDevice", 9000, false, (void *)cuLaunchCooperativeKernelMultiDevice},
	{"cuLaunchGrid", 2000, false, (void *)cuLaunchGrid},
	{"cuLaunchGridAsync", 2000, false, (void *)cuLaunchGridAsync},
	{"cuLaunchHostFunc", 10000, false, (void *)cuLaunchHostFunc},
	{"cuLaunchHostFunc", 10000, true, (void *)cuLaunchHostFunc_ptsz},
	{"cuLaunchKernel", 4000, false, (void *)cuLaunchKernel},
	{"cuLaunchKernel", 7000, true, (void *)cuLaunchKernel_ptsz},
	{"cuLaunchKernelEx", 11060, false, (void *)cuLaunchKernelEx},
	{"cuLaunchKernelEx", 11060, true, (void *)cuLaunchKernelEx_ptsz},
	{"cuLibraryEnumerateKernels", 12040, false, (void *)cuLibraryEnumerateKernels},
	{"cuLibraryGetGlobal", 12000, false, (void *)cuLibraryGetGlobal},
	{"cuLibraryGetKernel", 12000, false, (void *)cuLibraryGetKernel},
	{"cuLibraryGetKernelCount", 12040, false, (void *)cuLibraryGetKernelCount},
	{"cuLibraryGetManaged", 12000, false, (void *)cuLibraryGetManaged},
	{"cuLibraryGetModule", 12000, false, (void *)cuLibraryGetModule},
	{"cuLibraryGetUnifiedFunction", 12000, false, (void *)cuLibraryGetUnifiedFunction},
	{"cuLibraryLoadData", 12000, false, (void *)cuLibraryLoadData},
	{"cuLibraryLoadFromFile", 12000, false, (void *)cuLibraryLoadFromFile},
	{"cuLibraryUnload", 12000, false, (void *)cuLibraryUnload},
	{"cuLinkAddData", 5050, false, (void *)cuLinkAddData},
	{"cuLinkAddData", 6050, false, (void *)cuLinkAddData_v2},
	{"cuLinkAddFile", 5050, false, (void *)cuLinkAddFile},
	{"cuLinkAddFile", 6050, false, (void *)cuLinkAddFile_v2},
	{"cuLinkComplete", 5050, false, (void *)cuLinkComplete},
	{"cuLinkCreate", 5050, false, (void *)cuLinkCreate},
	{"cuLinkCreate", 6050, false, (void *)cuLinkCreate_v2},
	{"cuLinkDestroy", 5050, false, (void *)cuLinkDestroy},
	{"cuLogsCurrent", 12090, false, (void *)cuLogsCurrent},
	{"cuLogsDumpToFile", 12090, false, (void *)cuLogsDumpToFile},
	{"cuLogsDumpToMemory", 12090, false, (void *)cuLogsDumpToMemory},
	{"cuLogsRegisterCallback", 12090, false, (void *)cuLogsRegisterCallback},
	{"cuLogsUnregisterCallback", 12090, false, (void *)cuLogsUnregisterCallback},
	{"cuMemAddressFree", 10020, false, (void *)cuMemAddressFree},
	{"cuMemAddressReserve", 10020, false, (void *)cuMemAddressReserve},
	{"cuMemAdvise", 8000, false, (void *)cuMemAdvise},
	{"cuMemAdvise", 12020, false, (void *)cuMemAdvise_v2},
	{"cuMemAlloc", 2000, false, (void *)cuMemAlloc},
	{"cuMemAlloc", 3020, false, (void *)cuMemAlloc_v2},
	{"cuMemAllocAsync", 11020, false, (void *)cuMemAllocAsync},
	{"cuMemAllocAsync", 11020, true, (void *)cuMemAllocAsync_ptsz},
	{"cuMemAllocFromPoolAsync", 11020, false, (void *)cuMemAllocFromPoolAsync},
	{"cuMemAllocFromPoolAsync", 11020, true, (void *)cuMemAllocFromPoolAsync_ptsz},
	{"cuMemAllocHost", 2000, false, (void *)cuMemAllocHost},
	{"cuMemAllocHost", 3020, false, (void *)cuMemAllocHost_v2},
	{"cuMemAllocManaged", 6000, false, (void *)cuMemAllocManaged},
	{"cuMemAllocPitch", 2000, false, (void *)cuMemAllocPitch},
	{"cuMemAllocPitch", 3020, false, (void *)cuMemAllocPitch_v2},
	{"cuMemBatchDecompressAsync", 12060, false, (void *)cuMemBatchDecompressAsync},
	{"cuMemBatchDecompressAsync", 12060, true, (void *)cuMemBatchDecompressAsync_ptsz},
	{"cuMemCreate", 10020, false, (void *)cuMemCreate},
	{"cuMemExportToShareableHandle", 10020, false, (void *)cuMemExportToShareableHandle},
	{"cuMemFree", 2000, false, (void *)cuMemFree},
	{"cuMemFree", 3020, false, (void *)cuMemFree_v2},
	{"cuMemFreeAsync", 11020, false, (void *)cuMemFreeAsync},
	{"cuMemFreeAsync", 11020, true, (void *)cuMemFreeAsync_ptsz},
	{"cuMemFreeHost", 2000, false, (void *)cuMemFreeHost},
	{"cuMemGetAccess", 10020, false, (void *)cuMemGetAccess},
	{"cuMemGetAddressRange", 2000, false, (void *)cuMemGetAddressRange},
	{"cuMemGetAddressRange", 3020, false, (void *)cuMemGetAddressRange_v2},
	{"cuMemGetAllocationGranularity", 10020, false, (void *)cuMemGetAllocationGranularity},
	{"cuMemGetAllocationPropertiesFromHandle", 10020, false, (void *)cuMemGetAllocationPropertiesFromHandle},
	{"cuMemGetHandleForAddressRange", 11070, false, (void *)cuMemGetHandleForAddressRange},
	{"cuMemGetInfo", 2000, false, (void *)cuMemGetInfo},
	{"cuMemGetInfo", 3020, false, (void *)cuMemGetInfo_v2},
	{"cuMemHostAlloc", 2020, false, (void *)cuMemHostAlloc},
	{"cuMemHostGetDevicePointer", 2020, false, (void *)cuMemHostGetDevicePointer},
	{"cuMemHostGetDevicePointer", 3020, false, (void *)cuMemHostGetDevicePointer_v2},
	{"cuMemHostGetFlags", 2030, false, (void *)cuMemHostGetFlags},
	{"cuMemHostRegister", 4000, false, (void *)cuMemHostRegister},
	{"cuMemHostRegister", 6050, false, (void *)cuMemHostRegister_v2},
	{"cuMemHostUnregister", 4000, false, (void *)cuMemHostUnregister},
	{"cuMemImportFromShareableHandle", 10020, false, (void *)cuMemImportFromShareableHandle},
	{"cuMemMap", 10020, false, (void *)cuMemMap},
	{"cuMemMapArrayAsync", 11010, false, (void *)cuMemMapArrayAsync},
	{"cuMemMapArrayAsync", 11010, true, (void *)cuMemMapArrayAsync_ptsz},
	{"cuMemPoolCreate", 11020, false, (void *)cuMemPoolCreate},
	{"cuMemPoolDestroy", 11020, false, (void *)cuMemPoolDestroy},
	{"cuMemPoolExportPointer", 11020, false, (void *)cuMemPoolExportPointer},
	{"cuMemPoolExportToShareableHandle", 11020, false, (void *)cuMemPoolExportToShareableHandle},
	{"cuMemPoolGetAccess", 11020, false, (void *)cuMemPoolGetAccess},
	{"cuMemPoolGetAttribute", 11020, false, (void *)cuMemPoolGetAttribute},
	{"cuMemPoolImportFromShareableHandle", 11020, false, (void *)cuMemPoolImportFromShareableHandle},
	{"cuMemPoolImportPointer", 11020, false, (void *)cuMemPoolImportPointer},
	{"cuMemPoolSetAccess", 11020, false, (void *)cuMemPoolSetAccess},
	{"cuMemPoolSetAttribute", 11020, false, (void *)cuMemPoolSetAttribute},
	{"cuMemPoolTrimTo", 11020, false, (void *)cuMemPoolTrimTo},
	{"cuMemPrefetchAsync", 8000, false, (void *)cuMemPrefetchAsync},
	{"cuMemPrefetchAsync", 8000, true, (void *)cuMemPrefetchAsync_ptsz},
	{"cuMemPrefetchAsync", 12020, false, (void *)cuMemPrefetchAsync_v2},
	{"cuMemPrefetchAsync", 12020, true, (void *)cuMemPrefetchAsync_v2_ptsz},
	{"cuMemRangeGetAttribute", 8000, false, (void *)cuMemRangeGetAttribute},
	{"cuMemRangeGetAttributes", 8000, false, (void *)cuMemRangeGetAttributes},
	{"cuMemRelease", 10020, false, (void *)cuMemRelease},
	{"cuMemRetainAllocationHandle", 11000, false, (void *)cuMemRetainAllocationHandle},
	{"cuMemSetAccess", 10020, false, (void *)cuMemSetAccess},
	{"cuMemUnmap", 10020, false, (void *)cuMemUnmap},
	{"cuMemcpy", 4000, false, (void *)cuMemcpy},
	{"cuMemcpy", 7000, true, (void *)cuMemcpy_ptds},
	{"cuMemcpy2D", 2000, false, (void *)cuMemcpy2D},
	{"cuMemcpy2D", 3020, false, (void *)cuMemcpy2D_v2},
	{"cuMemcpy2D", 7000, true, (void *)cuMemcpy2D_v2_ptds},
	{"cuMemcpy2DAsync", 2000, false, (void *)cuMemcpy2DAsync},
	{"cuMemcpy2DAsync", 3020, false, (void *)cuMemcpy2DAsync_v2},
	{"cuMemcpy2DAsync", 7000, true, (void *)cuMemcpy2DAsync_v2_ptsz},
	{"cuMemcpy2DUnaligned", 2000, false, (void *)cuMemcpy2DUnaligned},
	{"cuMemcpy2DUnaligned", 3020, false, (void *)cuMemcpy2DUnaligned_v2},
	{"cuMemcpy2DUnaligned", 7000, true, (void *)cuMemcpy2DUnaligned_v2_ptds},
	{"cuMemcpy3D", 2000, false, (void *)cuMemcpy3D},
	{"cuMemcpy3D", 3020, false, (void *)cuMemcpy3D_v2},
	{"cuMemcpy3D", 7000, true, (void *)cuMemcpy3D_v2_ptds},
	{"cuMemcpy3DAsync", 2000, false, (void *)cuMemcpy3DAsync},
	{"cuMemcpy3DAsync", 3020, false, (void *)cuMemcpy3DAsync_v2},
	{"cuMemcpy3DAsync", 7000, true, (void *)cuMemcpy3DAsync_v2_ptsz},
	{"cuMemcpy3DBatchAsync", 12080, false, (void *)cuMemcpy3DBatchAsync},
	{"cuMemcpy3DBatchAsync", 12080, true, (void *)cuMemcpy3DBatchAsync_ptsz},
	{"cuMemcpy3DPeer", 4000, false, (void *)cuMemcpy3DPeer},
	{"cuMemcpy3DPeer", 7000, true, (void *)cuMemcpy3DPeer_ptds},
	{"cuMemcpy3DPeerAsync", 4000, false, (void *)cuMemcpy3DPeerAsync},
	{"cuMemcpy3DPeerAsync", 7000, true, (void *)cuMemcpy3DPeerAsync_ptsz},
	{"cuMemcpyAsync", 4000, false, (void *)cuMemcpyAsync},
	{"cuMemcpyAsync", 7000, true, (void *)cuMemcpyAsync_ptsz},
	{"cuMemcpyAtoA", 2000, false, (void *)cuMemcpyAtoA},
	{"cuMemcpyAtoA", 3020, false, (void *)cuMemcpyAtoA_v2},
	{"cuMemcpyAtoA", 7000, true, (void *)cuMemcpyAtoA_v2_ptds},
	{"cuMemcpyAtoD", 2000, false, (void *)cuMemcpyAtoD},
	{"cuMemcpyAtoD", 3020, false, (void *)cuMemcpyAtoD_v2},
	{"cuMemcpyAtoD", 7000, true, (void *)cuMemcpyAtoD_v2_ptds},
	{"cuMemcpyAtoH", 2000, false, (void *)cuMemcpyAtoH},
	{"cuMemcpyAtoH", 3020, false, (void *)cuMemcpyAtoH_v2},
	{"cuMemcpyAtoH", 7000, true, (void *)cuMemcpyAtoH_v2_ptds},
	{"cuMemcpyAtoHAsync", 2000, false, (void *)cuMemcpyAtoHAsync},
	{"cuMemcpyAtoHAsync", 3020, false, (void *)cuMemcpyAtoHAsync_v2},
	{"cuMemcpyAtoHAsync", 7000, true, (void *)cuMemcpyAtoHAsync_v2_ptsz},
	{"cuMemcpyBatchAsync", 12080, false, (void *)cuMemcpyBatchAsync},
	{"cuMemcpyBatchAsync", 12080, true, (void *)cuMemcpyBatchAsync_ptsz},
	{"cuMemcpyDtoA", 2000, false, (void *)cuMemcpyDtoA},
	{"cuMemcpyDtoA", 3020, false, (void *)cuMemcpyDtoA_v2},
	{"cuMemcpyDtoA", 7000, true, (void *)cuMemcpyDtoA_v2_ptds},
	{"cuMemcpyDtoD", 2000, false, (void *)cuMemcpyDtoD},
	{"cuMemcpyDtoD", 3020, false, (void *)cuMemcpyDtoD_v2},
	{"cuMemcpyDtoD", 7000, true, (void *)cuMemcpyDtoD_v2_ptds},
	{"cuMemcpyDtoDAsync", 3000, false, (void *)cuMemcpyDtoDAsync},
	{"cuMemcpyDtoDAsync", 3020, false, (void *)cuMemcpyDtoDAsync_v2},
	{"cuMemcpyDtoDAsync", 7000, true, (void *)cuMemcpyDtoDAsync_v2_ptsz},
	{"cuMemcpyDtoH", 2000, false, (void *)cuMemcpyDtoH},
	{"cuMemcpyDtoH", 3020, false, (void *)cuMemcpyDtoH_v2},
	{"cuMemcpyDtoH", 7000, true, (void *)cuMemcpyDtoH_v2_ptds},
	{"cuMemcpyDtoHAsync", 2000, false, (void *)cuMemcpyDtoHAsync},
	{"cuMemcpyDtoHAsync", 3020, false, (void *)cuMemcpyDtoHAsync_v2},
	{"cuMemcpyDtoHAsync", 7000, true, (void *)cuMemcpyDtoHAsync_v2_ptsz},
	{"cuMemcpyHtoA", 2000, false, (void *)cuMemcpyHtoA},
	{"cuMemcpyHtoA", 3020, false, (void *)cuMemcpyHtoA_v2},
	{"cuMemcpyHtoA", 7000, true, (void *)cuMemcpyHtoA_v2_ptds},
	{"cuMemcpyHtoAAsync", 2000, false, (void *)cuMemcpyHtoAAsync},
	{"cuMemcpyHtoAAsync", 3020, false, (void *)cuMemcpyHtoAAsync_v2},
	{"cuMemcpyHtoAAsync", 7000, true, (void *)cuMemcpyHtoAAsync_v2_ptsz},
	{"cuMemcpyHtoD", 2000, false, (void *)cuMemcpyHtoD},
	{"cuMemcpyHtoD", 3020, false, (void *)cuMemcpyHtoD_v2},
	{"cuMemcpyHtoD", 7000, true, (void *)cuMemcpyHtoD_v2_ptds},
	{"cuMemcpyHtoDAsync", 2000, false, (void *)cuMemcpyHtoDAsync},
	{"cuMemcpyHtoDAsync", 3020, false, (void *)cuMemcpyHtoDAsync_v2},
	{"cuMemcpyHtoDAsync", 7000, true, (void *)cuMemcpyHtoDAsync_v2_ptsz},
	{"cuMemcpyPeer", 4000, false, (void *)cuMemcpyPeer},
	{"cuMemcpyPeer", 7000, true, (void *)cuMemcpyPeer_ptds},
	{"cuMemcpyPeerAsync", 4000, false, (void *)cuMemcpyPeerAsync},
	{"cuMemcpyPeerAsync", 7000, true, (void *)cuMemcpyPeerAsync_ptsz},
	{"cuMemsetD16", 2000, false, (void *)cuMemsetD16},
	{"cuMemsetD16", 3020, false, (void *)cuMemsetD16_v2},
	{"cuMemsetD16", 7000, true, (void *)cuMemsetD16_v2_ptds},
	{"cuMemsetD16Async", 3020, false, (void *)cuMemsetD16Async},
	{"cuMemsetD16Async", 7000, true, (void *)cuMemsetD16Async_ptsz},
	{"cuMemsetD2D16", 2000, false, (void *)cuMemsetD2D16},
	{"cuMemsetD2D16", 3020, false, (void *)cuMemsetD2D16_v2},
	{"cuMemsetD2D16", 7000, true, (void *)cuMemsetD2D16_v2_ptds},
	{"cuMemsetD2D16Async", 3020, false, (void *)cuMemsetD2D16Async},
	{"cuMemsetD2D16Async", 7000, true, (void *)cuMemsetD2D16Async_ptsz},
	{"cuMemsetD2D32", 2000, false, (void *)cuMemsetD2D32},
	{"cuMemsetD2D32", 3020, false, (void *)cuMemsetD2D32_v2},
	{"cuMemsetD2D32", 7000, true, (void *)cuMemsetD2D32_v2_ptds},
	{"cuMemsetD2D32Async", 3020, false, (void *)cuMemsetD2D32Async},
	{"cuMemsetD2D32Async", 7000, true, (void *)cuMemsetD2D32Async_ptsz},
	{"cuMemsetD2D8", 2000, false, (void *)cuMemsetD2D8},
	{"cuMemsetD2D8", 3020, false, (void *)cuMemsetD2D8_v2},
	{"cuMemsetD2D8", 7000, true, (void *)cuMemsetD2D8_v2_ptds},
	{"cuMemsetD2D8Async", 3020, false, (void *)cuMemsetD2D8Async},
	{"cuMemsetD2D8Async", 7000, true, (void *)cuMemsetD2D8Async_ptsz},
	{"cuMemsetD32", 2000, false, (void *)cuMemsetD32},
	{"cuMemsetD32", 3020, false, (void *)cuMemsetD32_v2},
	{"cuMemsetD32", 7000, true, (void *)cuMemsetD32_v2_ptds},
	{"cuMemsetD32Async", 3020, false, (void *)cuMemsetD32Async},
	{"cuMemsetD32Async", 7000, true, (void *)cuMemsetD32Async_ptsz},
	{"cuMemsetD8", 2000, false, (void *)cuMemsetD8},
	{"cuMemsetD8", 3020, false, (void *)cuMemsetD8_v2},
	{"cuMemsetD8", 7000, true, (void *)cuMemsetD8_v2_ptds},
	{"cuMemsetD8Async", 3020, false, (void *)cuMemsetD8Async},
	{"cuMemsetD8Async", 7000, true, (void *)cuMemsetD8Async_ptsz},
	{"cuMipmappedArrayCreate", 5000, false, (void *)cuMipmappedArrayCreate},
	{"cuMipmappedArrayDestroy", 5000, false, (void *)cuMipmappedArrayDestroy},
	{"cuMipmappedArrayGetLevel", 5000, false, (void *)cuMipmappedArrayGetLevel},
	{"cuMipmappedArrayGetMemoryRequirements", 11060, false, (void *)cuMipmappedArrayGetMemoryRequirements},
	{"cuMipmappedArrayGetSparseProperties", 11010, false, (void *)cuMipmappedArrayGetSparseProperties},
	{"cuModuleEnumerateFunctions", 12040, false, (void *)cuModuleEnumerateFunctions},
	{"cuModuleGetFunction", 2000, false, (void *)cuModuleGetFunction},
	{"cuModuleGetFunctionCount", 12040, false, (void *)cuModuleGetFunctionCount},
	{"cuModuleGetGlobal", 2000, false, (void *)cuModuleGetGlobal},
	{"cuModuleGetGlobal", 3020, false, (void *)cuModuleGetGlobal_v2},
	{"cuModuleGetLoadingMode", 11070, false, (void *)cuModuleGetLoadingMode},
	{"cuModuleGetSurfRef", 3000, false, (void *)cuModuleGetSurfRef},
	{"cuModuleGetTexRef", 2000, false, (void *)cuModuleGetTexRef},
	{"cuModuleLoad", 2000, false, (void *)cuModuleLoad},
	{"cuModuleLoadData", 2000, false, (void *)cuModuleLoadData},
	{"cuModuleLoadDataEx", 2010, false, (void *)cuModuleLoadDataEx},
	{"cuModuleLoadFatBinary", 2000, false, (void *)cuModuleLoadFatBinary},
	{"cuModuleUnload", 2000, false, (void *)cuModuleUnload},
	{"cuMulticastAddDevice", 12010, false, (void *)cuMulticastAddDevice},
	{"cuMulticastBindAddr", 12010, false, (void *)cuMulticastBindAddr},
	{"cuMulticastBindMem", 12010, false, (void *)cuMulticastBindMem},
	{"cuMulticastCreate", 12010, false, (void *)cuMulticastCreate},
	{"cuMulticastGetGranularity", 12010, false, (void *)cuMulticastGetGranularity},
	{"cuMulticastUnbind", 12010, false, (void *)cuMulticastUnbind},
	{"cuOccupancyAvailableDynamicSMemPerBlock", 10020, false, (void *)cuOccupancyAvailableDynamicSMemPerBlock},
	{"cuOccupancyMaxActiveBlocksPerMultiprocessor", 6050, false, (void *)cuOccupancyMaxActiveBlocksPerMultiprocessor},
	{"cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", 7000, false, (void *)cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags},
	{"cuOccupancyMaxActiveClusters", 11070, false, (void *)cuOccupancyMaxActiveClusters},
	{"cuOccupancyMaxPotentialBlockSize", 6050, false, (void *)cuOccupancyMaxPotentialBlockSize},
	{"cuOccupancyMaxPotentialBlockSizeWithFlags", 7000, false, (void *)cuOccupancyMaxPotentialBlockSizeWithFlags},
	{"cuOccupancyMaxPotentialClusterSize", 11070, false, (void *)cuOccupancyMaxPotentialClusterSize},
	{"cuParamSetSize", 2000, false, (void *)cuParamSetSize},
	{"cuParamSetTexRef", 2000, false, (void *)cuParamSetTexRef},
	{"cuParamSetf", 2000, false, (void *)cuParamSetf},
	{"cuParamSeti", 2000, false, (void *)cuParamSeti},
	{"cuParamSetv", 2000, false, (void *)cuParamSetv},
	{"cuPointerGetAttribute", 4000, false, (void *)cuPointerGetAttribute},
	{"cuPointerGetAttributes", 7000, false, (void *)cuPointerGetAttributes},
	{"cuPointerSetAttribute", 6000, false, (void *)cuPointerSetAttribute},
	{"cuProfilerStart", 4000, false, (void *)cuProfilerStart},
	{"cuProfilerStop", 4000, false, (void *)cuProfilerStop},
	{"cuSignalExternalSemaphoresAsync", 10000, false, (void *)cuSignalExternalSemaphoresAsync},
	{"cuSignalExternalSemaphoresAsync", 10000, true, (void *)cuSignalExternalSemaphoresAsync_ptsz},
	{"cuStreamAddCallback", 5000, false, (void *)cuStreamAddCallback},
	{"cuStreamAddCallback", 7000, true, (void *)cuStreamAddCallback_ptsz},
	{"cuStreamAttachMemAsync", 6000, false, (void *)cuStreamAttachMemAsync},
	{"cuStreamAttachMemAsync", 7000, true, (void *)cuStreamAttachMemAsync_ptsz},
	{"cuStreamBatchMemOp", 8000, false, (void *)cuStreamBatchMemOp},
	{"cuStreamBatchMemOp", 8000, true, (void *)cuStreamBatchMemOp_ptsz},
	{"cuStreamBatchMemOp", 11070, false, (void *)cuStreamBatchMemOp_v2},
	{"cuStreamBatchMemOp", 11070, true, (void *)cuStreamBatchMemOp_v2_ptsz},
	{"cuStreamBeginCapture", 10000, false, (void *)cuStreamBeginCapture},
	{"cuStreamBeginCapture", 10000, true, (void *)cuStreamBeginCapture_ptsz},
	{"cuStreamBeginCapture", 10010, false, (void *)cuStreamBeginCapture_v2},
	{"cuStreamBeginCapture", 10010, true, (void *)cuStreamBeginCapture_v2_ptsz},
	{"cuStreamBeginCaptureToGraph", 12030, false, (void *)cuStreamBeginCaptureToGraph},
	{"cuStreamBeginCaptureToGraph", 12030, true, (void *)cuStreamBeginCaptureToGraph_ptsz},
	{"cuStreamCopyAttributes", 11000, false, (void *)cuStreamCopyAttributes},
	{"cuStreamCopyAttributes", 11000, true, (void *)cuStreamCopyAttributes_ptsz},
	{"cuStreamCreate", 2000, false, (void *)cuStreamCreate},
	{"cuStreamCreateWithPriority", 5050, false, (void *)cuStreamCreateWithPriority},
	{"cuStreamDestroy", 2000, false, (void *)cuStreamDestroy},
	{"cuStreamDestroy", 4000, false, (void *)cuStreamDestroy_v2},
	{"cuStreamEndCapture", 10000, false, (void *)cuStreamEndCapture},
	{"cuStreamEndCapture", 10000, true, (void *)cuStreamEndCapture_ptsz},
	{"cuStreamGetAttribute", 11000, false, (void *)cuStreamGetAttribute},
	{"cuStreamGetAttribute", 11000, true, (void *)cuStreamGetAttribute_ptsz},
	{"cuStreamGetCaptureInfo", 10010, false, (void *)cuStreamGetCaptureInfo},
	{"cuStreamGetCaptureInfo", 10010, true, (void *)cuStreamGetCaptureInfo_ptsz},
	{"cuStreamGetCaptureInfo", 11030, false, (void *)cuStreamGetCaptureInfo_v2},
	{"cuStreamGetCaptureInfo", 11030, true, (void *)cuStreamGetCaptureInfo_v2_ptsz},
	{"cuStreamGetCaptureInfo", 12030, false, (void *)cuStreamGetCaptureInfo_v3},
	{"cuStreamGetCaptureInfo", 12030, true, (void *)cuStreamGetCaptureInfo_v3_ptsz},
	{"cuStreamGetCtx", 9020, false, (void *)cuStreamGetCtx},
	{"cuStreamGetCtx", 9020, true, (void *)cuStreamGetCtx_ptsz},
	{"cuStreamGetCtx", 12050, false, (void *)cuStreamGetCtx_v2},
	{"cuStreamGetCtx", 12050, true, (void *)cuStreamGetCtx_v2_ptsz},
	{"cuStreamGetDevice", 12080, false, (void *)cuStreamGetDevice},
	{"cuStreamGetDevice", 12080, true, (void *)cuStreamGetDevice_ptsz},
	{"cuStreamGetFlags", 5050, false, (void *)cuStreamGetFlags},
	{"cuStreamGetFlags", 7000, true, (void *)cuStreamGetFlags_ptsz},
	{"cuStreamGetGreenCtx", 12040, false, (void *)cuStreamGetGreenCtx},
	{"cuStreamGetId", 12000, false, (void *)cuStreamGetId},
	{"cuStreamGetId", 12000, true, (void *)cuStreamGetId_ptsz},
	{"cuStreamGetPriority", 5050, false, (void *)cuStreamGetPriority},
	{"cuStreamGetPriority", 7000, true, (void *)cuStreamGetPriority_ptsz},
	{"cuStreamIsCapturing", 10000, false, (void *)cuStreamIsCapturing},
	{"cuStreamIsCapturing", 10000, true, (void *)cuStreamIsCapturing_ptsz},
	{"cuStreamQuery", 2000, false, (void *)cuStreamQuery},
	{"cuStreamQuery", 7000, true, (void *)cuStreamQuery_ptsz},
	{"cuStreamSetAttribute", 11000, false, (void *)cuStreamSetAttribute},
	{"cuStreamSetAttribute", 11000, true, (void *)cuStreamSetAttribute_ptsz},
	{"cuStreamSynchronize", 2000, false, (void *)cuStreamSynchronize},
	{"cuStreamSynchronize", 7000, true, (void *)cuStreamSynchronize_ptsz},
	{"cuStreamUpdateCaptureDependencies", 11030, false, (void *)cuStreamUpdateCaptureDependencies},
	{"cuStreamUpdateCaptureDependencies", 11030, true, (void *)cuStreamUpdateCaptureDependencies_ptsz},
	{"cuStreamUpdateCaptureDependencies", 12030, false, (void *)cuStreamUpdateCaptureDependencies_v2},
	{"cuStreamUpdateCaptureDependencies", 12030, true, (void *)cuStreamUpdateCaptureDependencies_v2_ptsz},
	{"cuStreamWaitEvent", 3020, false, (void *)cuStreamWaitEvent},
	{"cuStreamWaitEvent", 7000, true, (void *)cuStreamWaitEvent_ptsz},
	{"cuStreamWaitValue32", 8000, false, (void *)cuStreamWaitValue32},
	{"cuStreamWaitValue32", 8000, true, (void *)cuStreamWaitValue32_ptsz},
	{"cuStreamWaitValue32", 11070, false, (void *)cuStreamWaitValue32_v2},
	{"cuStreamWaitValue32", 11070, true, (void *)cuStreamWaitValue32_v2_ptsz},
	{"cuStreamWaitValue64", 9000, false, (void *)cuStreamWaitValue64},
	{"cuStreamWaitValue64", 9000, true, (void *)cuStreamWaitValue64_ptsz},
	{"cuStreamWaitValue64", 11070, false, (void *)cuStreamWaitValue64_v2},
	{"cuStreamWaitValue64", 11070, true, (void *)cuStreamWaitValue64_v2_ptsz},
	{"cuStreamWriteValue32", 8000, false, (void *)cuStreamWriteValue32},
	{"cuStreamWriteValue32", 8000, true, (void *)cuStreamWriteValue32_ptsz},
	{"cuStreamWriteValue32", 11070, false, (void *)cuStreamWriteValue32_v2},
	{"cuStreamWriteValue32", 11070, true, (void *)cuStreamWriteValue32_v2_ptsz},
	{"cuStreamWriteValue64", 9000, false, (void *)cuStreamWriteValue64},
	{"cuStreamWriteValue64", 9000, true, (void *)cuStreamWriteValue64_ptsz},
	{"cuStreamWriteValue64", 11070, false, (void *)cuStreamWriteValue64_v2},
	{"cuStreamWriteValue64", 11070, true, (void *)cuStreamWriteValue64_v2_ptsz},
	{"cuSurfObjectCreate", 5000, false, (void *)cuSurfObjectCreate},
	{"cuSurfObjectDestroy", 5000, false, (void *)cuSurfObjectDestroy},
	{"cuSurfObjectGetResourceDesc", 5000, false, (void *)cuSurfObjectGetResourceDesc},
	{"cuSurfRefGetArray", 3000, false, (void *)cuSurfRefGetArray},
	{"cuSurfRefSetArray", 3000, false, (void *)cuSurfRefSetArray},
	{"cuTensorMapEncodeIm2col", 12000, false, (void *)cuTensorMapEncodeIm2col},
	{"cuTensorMapEncodeIm2colWide", 12080, false, (void *)cuTensorMapEncodeIm2colWide},
	{"cuTensorMapEncodeTiled", 12000, false, (void *)cuTensorMapEncodeTiled},
	{"cuTensorMapReplaceAddress", 12000, false, (void *)cuTensorMapReplaceAddress},
	{"cuTexObjectCreate", 5000, false, (void *)cuTexObjectCreate},
	{"cuTexObjectDestroy", 5000, false, (void *)cuTexObjectDestroy},
	{"cuTexObjectGetResourceDesc", 5000, false, (void *)cuTexObjectGetResourceDesc},
	{"cuTexObjectGetResourceViewDesc", 5000, false, (void *)cuTexObjectGetResourceViewDesc},
	{"cuTexObjectGetTextureDesc", 5000, false, (void *)cuTexObjectGetTextureDesc},
	{"cuTexRefCreate", 2000, false, (void *)cuTexRefCreate},
	{"cuTexRefDestroy", 2000, false, (void *)cuTexRefDestroy},
	{"cuTexRefGetAddress", 2000, false, (void *)cuTexRefGetAddress},
	{"cuTexRefGetAddress", 3020, false, (void *)cuTexRefGetAddress_v2},
	{"cuTexRefGetAddressMode", 2000, false, (void *)cuTexRefGetAddressMode},
	{"cuTexRefGetArray", 2000, false, (void *)cuTexRefGetArray},
	{"cuTexRefGetBorderColor", 8000, false, (void *)cuTexRefGetBorderColor},
	{"cuTexRefGetFilterMode", 2000, false, (void *)cuTexRefGetFilterMode},
	{"cuTexRefGetFlags", 2000, false, (void *)cuTexRefGetFlags},
	{"cuTexRefGetFormat", 2000, false, (void *)cuTexRefGetFormat},
	{"cuTexRefGetMaxAnisotropy", 5000, false, (void *)cuTexRefGetMaxAnisotropy},
	{"cuTexRefGetMipmapFilterMode", 5000, false, (void *)cuTexRefGetMipmapFilterMode},
	{"cuTexRefGetMipmapLevelBias", 5000, false, (void *)cuTexRefGetMipmapLevelBias},
	{"cuTexRefGetMipmapLevelClamp", 5000, false, (void *)cuTexRefGetMipmapLevelClamp},
	{"cuTexRefGetMipmappedArray", 5000, false, (void *)cuTexRefGetMipmappedArray},
	{"cuTexRefSetAddress", 2000, false, (void *)cuTexRefSetAddress},
	{"cuTexRefSetAddress", 3020, false, (void *)cuTexRefSetAddress_v2},
	{"cuTexRefSetAddress2D", 2020, false, (void *)cuTexRefSetAddress2D},
	{"cuTexRefSetAddress2D", 3020, false, (void *)cuTexRefSetAddress2D_v2},
	{"cuTexRefSetAddress2D", 4010, false, (void *)cuTexRefSetAddress2D_v3},
	{"cuTexRefSetAddressMode", 2000, false, (void *)cuTexRefSetAddressMode},
	{"cuTexRefSetArray", 2000, false, (void *)cuTexRefSetArray},
	{"cuTexRefSetBorderColor", 8000, false, (void *)cuTexRefSetBorderColor},
	{"cuTexRefSetFilterMode", 2000, false, (void *)cuTexRefSetFilterMode},
	{"cuTexRefSetFlags", 2000, false, (void *)cuTexRefSetFlags},
	{"cuTexRefSetFormat", 2000, false, (void *)cuTexRefSetFormat},
	{"cuTexRefSetMaxAnisotropy", 5000, false, (void *)cuTexRefSetMaxAnisotropy},
	{"cuTexRefSetMipmapFilterMode", 5000, false, (void *)cuTexRefSetMipmapFilterMode},
	{"cuTexRefSetMipmapLevelBias", 5000, false, (void *)cuTexRefSetMipmapLevelBias},
	{"cuTexRefSetMipmapLevelClamp", 5000, false, (void *)cuTexRefSetMipmapLevelClamp},
	{"cuTexRefSetMipmappedArray", 5000, false, (void *)cuTexRefSetMipmappedArray},
	{"cuThreadExchangeStreamCaptureMode", 10010, false, (void *)cuThreadExchangeStreamCaptureMode},
	{"cuUserObjectCreate", 11030, false, (void *)cuUserObjectCreate},
	{"cuUserObjectRelease", 11030, false, (void *)cuUserObjectRelease},
	{"cuUserObjectRetain", 11030, false, (void *)cuUserObjectRetain},
	{"cuWaitExternalSemaphoresAsync", 10000, false, (void *)cuWaitExternalSemaphoresAsync},
	{"cuWaitExternalSemaphoresAsync", 10000, true, (void *)cuWaitExternalSemaphoresAsync_ptsz},
};

const size_t symbols_count = 618;
