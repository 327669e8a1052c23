/* HIP's names for CUDA's runtime: those that daemon/device/hip, client/import_hip.c and kernels/hip_share.c use, and no
 * others.
 *
 * CUDA 12.8 or later is needed, whose runtime can load kernels from memory by itself (cudaLibraryLoadData). libcuda
 * is needed only where this runs, not where it is built: its functions are looked up through the runtime. */
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HIP_KIND              "cuda"
#define HIP_VENDOR            "NVIDIA"
#define HIP_NAME(call)        "cuda" #call
#define HIP_NAME_DRIVER(call) "cu" #call

/* clang-format off */
#define hipError_t                      cudaError_t
#define hipSuccess                      cudaSuccess
#define hipErrorNoDevice                cudaErrorNoDevice
#define hipErrorNotReady                cudaErrorNotReady
#define hipErrorOutOfMemory             cudaErrorMemoryAllocation
#define hipErrorNoBinaryForGpu          cudaErrorNoKernelImageForDevice
#define hipErrorNotFound                cudaErrorSymbolNotFound
#define hipErrorNotSupported            cudaErrorNotSupported
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
#define hipHostRegister                 cudaHostRegister
#define hipHostRegisterPortable         cudaHostRegisterPortable
#define hipHostUnregister               cudaHostUnregister
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

#define hipMemGenericAllocationHandle_t CUmemGenericAllocationHandle
#define hipMemAllocationProp            CUmemAllocationProp
#define requestedHandleType             requestedHandleTypes
#define hipMemAllocationTypePinned      CU_MEM_ALLOCATION_TYPE_PINNED
#define hipMemHandleTypePosixFileDescriptor CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
#define hipMemLocationTypeDevice        CU_MEM_LOCATION_TYPE_DEVICE
#define hipMemAllocationGranularityMinimum CU_MEM_ALLOC_GRANULARITY_MINIMUM
#define hipMemAccessDesc                CUmemAccessDesc
#define hipMemAccessFlags               CUmemAccess_flags
#define hipMemAccessFlagsProtRead       CU_MEM_ACCESS_FLAGS_PROT_READ
#define hipMemAccessFlagsProtReadWrite  CU_MEM_ACCESS_FLAGS_PROT_READWRITE

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

/* What only the driver has functions for: memory that is shared by descriptors. The driver's error codes are the
 * runtime's. */

/* The version of the driver's interface whose functions are meant. Their types are those of cuda.h. */
#define HIP_CUDA_INTERFACE 12000

/* Declares `function`, a pointer to the driver's function of this name, which is looked up once; and returns an error
 * if the driver has none. */
#define HIP_CUDA_DRIVER(name, function)                                                                                \
    static void *function##_found;                                                                                     \
    void *function##_at = __atomic_load_n(&function##_found, __ATOMIC_ACQUIRE);                                        \
    if (!function##_at) {                                                                                              \
        hipError_t error_ = hip_cuda_find(#name, &function##_at);                                                      \
        if (error_ != cudaSuccess)                                                                                     \
            return error_;                                                                                             \
        __atomic_store_n(&function##_found, function##_at, __ATOMIC_RELEASE);                                          \
    }                                                                                                                  \
    const __typeof__(&(name)) function = (__typeof__(&(name)))function##_at

static inline hipError_t hip_cuda_find(const char *name, void **ret)
{
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    hipError_t e = cudaGetDriverEntryPointByVersion(name, ret, HIP_CUDA_INTERFACE, cudaEnableDefault, &found);
    return e == cudaSuccess && (found != cudaDriverEntryPointSuccess || !*ret) ? cudaErrorNotSupported : e;
}

/* The driver's own function: cudaGetDeviceProperties() asks for much else, and clients need the UUID at each attach. */
static inline hipError_t hip_cuda_uuid(hipUUID *ret, int device)
{
    CUuuid uuid;
    HIP_CUDA_DRIVER(cuDeviceGetUuid, function);
    const hipError_t e = (hipError_t)function(&uuid, device);
    if (e == cudaSuccess)
        memcpy(ret->bytes, uuid.bytes, sizeof(ret->bytes));
    return e;
}

static inline hipError_t hipDeviceGetUuid(hipUUID *uuid, int device)
{
    struct cudaDeviceProp properties;
    if (hip_cuda_uuid(uuid, device) == cudaSuccess)
        return cudaSuccess;
    hipError_t e = hip_cuda_properties(&properties, device);
    if (e == cudaSuccess)
        memcpy(uuid->bytes, properties.uuid.bytes, sizeof(uuid->bytes));
    return e;
}

static inline hipError_t hipMemGetAllocationGranularity(size_t *granule, const CUmemAllocationProp *properties,
                                                        CUmemAllocationGranularity_flags which)
{
    HIP_CUDA_DRIVER(cuMemGetAllocationGranularity, function);
    return (hipError_t)function(granule, properties, which);
}

static inline hipError_t hipMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                                      const CUmemAllocationProp *properties, unsigned long long flags)
{
    HIP_CUDA_DRIVER(cuMemCreate, function);
    return (hipError_t)function(handle, bytes, properties, flags);
}

static inline hipError_t hipMemRelease(CUmemGenericAllocationHandle handle)
{
    HIP_CUDA_DRIVER(cuMemRelease, function);
    return (hipError_t)function(handle);
}

static inline hipError_t hipMemAddressReserve(void **pointer, size_t bytes, size_t alignment, void *where,
                                              unsigned long long flags)
{
    CUdeviceptr address = 0;
    HIP_CUDA_DRIVER(cuMemAddressReserve, function);
    const hipError_t e = (hipError_t)function(&address, bytes, alignment, (CUdeviceptr)(uintptr_t)where, flags);
    if (e == cudaSuccess)
        *pointer = (void *)(uintptr_t)address;
    return e;
}

static inline hipError_t hipMemAddressFree(void *pointer, size_t bytes)
{
    HIP_CUDA_DRIVER(cuMemAddressFree, function);
    return (hipError_t)function((CUdeviceptr)(uintptr_t)pointer, bytes);
}

static inline hipError_t hipMemMap(void *pointer, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                                   unsigned long long flags)
{
    HIP_CUDA_DRIVER(cuMemMap, function);
    return (hipError_t)function((CUdeviceptr)(uintptr_t)pointer, bytes, offset, handle, flags);
}

static inline hipError_t hipMemUnmap(void *pointer, size_t bytes)
{
    HIP_CUDA_DRIVER(cuMemUnmap, function);
    return (hipError_t)function((CUdeviceptr)(uintptr_t)pointer, bytes);
}

static inline hipError_t hipMemSetAccess(void *pointer, size_t bytes, const CUmemAccessDesc *access, size_t n)
{
    HIP_CUDA_DRIVER(cuMemSetAccess, function);
    return (hipError_t)function((CUdeviceptr)(uintptr_t)pointer, bytes, access, n);
}

static inline hipError_t hipMemExportToShareableHandle(void *ret, CUmemGenericAllocationHandle handle,
                                                       CUmemAllocationHandleType type, unsigned long long flags)
{
    HIP_CUDA_DRIVER(cuMemExportToShareableHandle, function);
    return (hipError_t)function(ret, handle, type, flags);
}

/* Makes an allocation's handle of a descriptor that another process got from hipMemExportToShareableHandle(). The
 * descriptor stays the caller's. `ret_call`: the name of the call that failed. */
static inline hipError_t hip_import_descriptor(CUmemGenericAllocationHandle *ret, int fd, const char **ret_call)
{
    *ret_call = "cuMemImportFromShareableHandle";
    HIP_CUDA_DRIVER(cuMemImportFromShareableHandle, function);
    return (hipError_t)function(ret, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
}
