/* Is included before the source of an import module, and times the calls that it makes to open memory: those of the
 * GPU's runtime and driver, and the thread that makes them. The program that loads the module has to have timed_call(),
 * and export it; without it nothing is timed. Names are static text. A call inside another one is counted in both. */
#pragma once

#if defined(ROCMFORGE_CUDA)
#include <cuda_runtime_api.h>
#endif
#include "tests/bench/seconds.h"

#include <pthread.h>

__attribute__((weak)) void timed_call(const char *name, double seconds);

#define TIMED(name, call)                                                                                              \
    ({                                                                                                                 \
        const double timed_begin_ = seconds();                                                                         \
        const __typeof__(call) timed_result_ = (call);                                                                 \
        if (timed_call)                                                                                                \
            timed_call(name, seconds() - timed_begin_);                                                                \
        timed_result_;                                                                                                 \
    })

#if defined(ROCMFORGE_CUDA)
#define cudaGetDriverEntryPointByVersion(...)                                                                          \
    TIMED("GetDriverEntryPoint", cudaGetDriverEntryPointByVersion(__VA_ARGS__))
#endif

#include "kernels/hip.h"
#include "kernels/hip_here.h"

/* These are functions in one runtime, and other names for functions in the other. */
#if defined(ROCMFORGE_CUDA)
#define cudaGetDeviceCount(...)    TIMED("GetDeviceCount", cudaGetDeviceCount(__VA_ARGS__))
#define cudaDeviceGetPCIBusId(...) TIMED("DeviceGetPCIBusId", cudaDeviceGetPCIBusId(__VA_ARGS__))
#define cudaSetDevice(...)         TIMED("SetDevice", cudaSetDevice(__VA_ARGS__))
#define cudaThreadExchangeStreamCaptureMode(...)                                                                       \
    TIMED("ThreadExchangeStreamCaptureMode", cudaThreadExchangeStreamCaptureMode(__VA_ARGS__))
#define cudaIpcOpenMemHandle(...) TIMED("IpcOpenMemHandle", cudaIpcOpenMemHandle(__VA_ARGS__))
#else
#define hipGetDeviceCount(...)    TIMED("GetDeviceCount", hipGetDeviceCount(__VA_ARGS__))
#define hipDeviceGetPCIBusId(...) TIMED("DeviceGetPCIBusId", hipDeviceGetPCIBusId(__VA_ARGS__))
#define hipSetDevice(...)         TIMED("SetDevice", hipSetDevice(__VA_ARGS__))
#define hipThreadExchangeStreamCaptureMode(...)                                                                        \
    TIMED("ThreadExchangeStreamCaptureMode", hipThreadExchangeStreamCaptureMode(__VA_ARGS__))
#define hipIpcOpenMemHandle(...) TIMED("IpcOpenMemHandle", hipIpcOpenMemHandle(__VA_ARGS__))
#endif
#define hipDeviceGetUuid(...) TIMED("DeviceGetUuid", hipDeviceGetUuid(__VA_ARGS__))
#define hipMemGetAllocationGranularity(...)                                                                            \
    TIMED("MemGetAllocationGranularity", hipMemGetAllocationGranularity(__VA_ARGS__))
#define hip_import_descriptor(...) TIMED("MemImportFromShareableHandle", hip_import_descriptor(__VA_ARGS__))
#define hipMemAddressReserve(...)  TIMED("MemAddressReserve", hipMemAddressReserve(__VA_ARGS__))
#define hipMemMap(...)             TIMED("MemMap", hipMemMap(__VA_ARGS__))
#define hipMemSetAccess(...)       TIMED("MemSetAccess", hipMemSetAccess(__VA_ARGS__))
#define hip_here_enter(...)        TIMED("context, entered", hip_here_enter(__VA_ARGS__))
#define hip_here_open(...)         TIMED("IpcOpenMemHandle", hip_here_open(__VA_ARGS__))
#define hip_here_leave(...)        TIMED("context, left", hip_here_leave(__VA_ARGS__))
#define pthread_create(...)        TIMED("thread, created", pthread_create(__VA_ARGS__))
#define pthread_join(...)          TIMED("thread, waited for", pthread_join(__VA_ARGS__))
