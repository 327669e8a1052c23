/* HIP's names for CUDA's runtime: those that daemon/device/hip and client/import_hip.c use, and no others.
 *
 * CUDA 12.8 or later is needed, whose runtime can load kernels from memory by itself (cudaLibraryLoadData). libcuda
 * is needed only where this runs, not where it is built. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HIP_KIND       "cuda"
#define HIP_VENDOR     "NVIDIA"
#define HIP_NAME(call) "cuda" #call

/* clang-format off */
#define hipError_t                      cudaError_t
#define hipSuccess                      cudaSuccess
#define hipErrorNoDevice                cudaErrorNoDevice
#define hipErrorNotReady                cudaErrorNotReady
#define hipErrorOutOfMemory             cudaErrorMemoryAllocation
#define hipErrorNoBinaryForGpu          cudaErrorNoKernelImageForDevice
#define hipErrorNotFound                cudaErrorSymbolNotFound
#define hipGetErrorString               cudaGetErrorString

#define hipGetDeviceCount               cudaGetDeviceCount
#define hipSetDevice                    cudaSetDevice
#define hipDeviceGetPCIBusId            cudaDeviceGetPCIBusId
#define hipDeviceSynchronize            cudaDeviceSynchronize
#define hipMemGetInfo                   cudaMemGetInfo

#define hipMalloc                       cudaMalloc
#define hipFree                         cudaFree
#define hipHostMalloc                   cudaHostAlloc
#define hipHostMallocDefault            cudaHostAllocDefault
#define hipHostFree                     cudaFreeHost
#define hipHostGetDevicePointer         cudaHostGetDevicePointer
#define hipMemsetAsync                  cudaMemsetAsync
#define hipMemcpy                       cudaMemcpy
#define hipMemcpyAsync                  cudaMemcpyAsync
#define hipMemcpyHostToDevice           cudaMemcpyHostToDevice
#define hipMemcpyDeviceToHost           cudaMemcpyDeviceToHost

#define hipStreamCaptureMode            enum cudaStreamCaptureMode
#define hipStreamCaptureModeRelaxed     cudaStreamCaptureModeRelaxed
#define hipThreadExchangeStreamCaptureMode cudaThreadExchangeStreamCaptureMode

#define hipStream_t                     cudaStream_t
#define hipStreamCreateWithFlags        cudaStreamCreateWithFlags
#define hipStreamNonBlocking            cudaStreamNonBlocking
#define hipStreamDestroy                cudaStreamDestroy
#define hipStreamSynchronize            cudaStreamSynchronize
#define hipStreamWaitEvent              cudaStreamWaitEvent

#define hipEvent_t                      cudaEvent_t
#define hipEventCreateWithFlags         cudaEventCreateWithFlags
#define hipEventDefault                 cudaEventDefault
#define hipEventBlockingSync            cudaEventBlockingSync
#define hipEventDisableTiming           cudaEventDisableTiming
#define hipEventDestroy                 cudaEventDestroy
#define hipEventRecord                  cudaEventRecord
#define hipEventQuery                   cudaEventQuery
#define hipEventSynchronize             cudaEventSynchronize
#define hipEventElapsedTime             cudaEventElapsedTime

#define hipIpcMemHandle_t               cudaIpcMemHandle_t
#define hipIpcGetMemHandle              cudaIpcGetMemHandle
#define hipIpcOpenMemHandle             cudaIpcOpenMemHandle
#define hipIpcCloseMemHandle            cudaIpcCloseMemHandle
#define hipIpcMemLazyEnablePeerAccess   cudaIpcMemLazyEnablePeerAccess

#define hipModule_t                     cudaLibrary_t
#define hipFunction_t                   cudaKernel_t
#define hipModuleUnload                 cudaLibraryUnload
#define hipModuleGetFunction            cudaLibraryGetKernel
/* clang-format on */

typedef struct {
    char bytes[16];
} hipUUID;

static inline hipError_t hipModuleLoadData(hipModule_t *module, const void *image)
{
    return cudaLibraryLoadData(module, image, NULL, NULL, 0, NULL, NULL, 0);
}

static inline hipError_t hipModuleLaunchKernel(hipFunction_t function, unsigned gx, unsigned gy, unsigned gz,
                                               unsigned bx, unsigned by, unsigned bz, unsigned shared,
                                               hipStream_t stream, void **params, void **extra)
{
    (void)extra;
    const struct dim3 grid = {gx, gy, gz}, block = {bx, by, bz};
    return cudaLaunchKernel((const void *)function, grid, block, params, shared, stream);
}

/* This is safe although the struct differs between versions of CUDA: the runtime is linked statically, so both are
 * of one version. */
static inline hipError_t hip_cuda_properties(struct cudaDeviceProp *ret, int device)
{
    memset(ret, 0, sizeof(*ret));
    return cudaGetDeviceProperties(ret, device);
}

static inline hipError_t hipDeviceGetName(char *name, int size, int device)
{
    struct cudaDeviceProp properties;
    hipError_t e = hip_cuda_properties(&properties, device);
    if (e == cudaSuccess) {
        size_t n = strnlen(properties.name, (size_t)size - 1);
        memcpy(name, properties.name, n);
        name[n] = '\0';
    }
    return e;
}

static inline hipError_t hipDeviceGetUuid(hipUUID *uuid, int device)
{
    struct cudaDeviceProp properties;
    hipError_t e = hip_cuda_properties(&properties, device);
    if (e == cudaSuccess)
        memcpy(uuid->bytes, properties.uuid.bytes, sizeof(uuid->bytes));
    return e;
}
