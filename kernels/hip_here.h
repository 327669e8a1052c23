/* Opens memory of other processes on a thread of the program, of which nothing is changed by that.
 *
 * A runtime keeps the current device and the last error for each thread; but CUDA's driver has functions that know
 * neither, and make a context current for a while. They are for a device that this process uses already: only then is
 * there a context. HIP has no such functions. */
#pragma once

#include "kernels/hip.h"

#include <stdbool.h>

#if defined(ROCMFORGE_CUDA)

#define HIP_HERE true

/* A device's context, once hip_here_learn() has found it. It stays as long as the process. */
struct hip_here {
    CUcontext context;
};

/* What the thread was in before. */
struct hip_here_before {
    CUstreamCaptureMode mode;
};

/* On a thread on which the device is current. */
static inline hipError_t hip_here_learn(int device, struct hip_here *ret)
{
    CUdevice of_driver;
    HIP_CUDA_DRIVER(cuDeviceGet, get);
    HIP_CUDA_DRIVER(cuDevicePrimaryCtxRetain, retain);
    const hipError_t e = (hipError_t)get(&of_driver, device);
    return e == cudaSuccess ? (hipError_t)retain(&ret->context, of_driver) : e;
}

/* After success hip_here_leave() has to follow. Another thread's capture of a graph, and this one's, forbid no call in
 * between. */
static inline hipError_t hip_here_enter(const struct hip_here *here, struct hip_here_before *ret)
{
    CUcontext popped;
    HIP_CUDA_DRIVER(cuCtxPushCurrent, push);
    HIP_CUDA_DRIVER(cuCtxPopCurrent, pop);
    HIP_CUDA_DRIVER(cuThreadExchangeStreamCaptureMode, exchange);
    hipError_t e = (hipError_t)push(here->context);
    if (e != cudaSuccess)
        return e;
    ret->mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    e = (hipError_t)exchange(&ret->mode);
    if (e != cudaSuccess)
        (void)pop(&popped);
    return e;
}

static inline hipError_t hip_here_leave(struct hip_here_before *before)
{
    CUcontext popped;
    HIP_CUDA_DRIVER(cuThreadExchangeStreamCaptureMode, exchange);
    HIP_CUDA_DRIVER(cuCtxPopCurrent, pop);
    (void)exchange(&before->mode);
    return (hipError_t)pop(&popped);
}

/* hipIpcOpenMemHandle(), between the two. */
static inline hipError_t hip_here_open(void **ret, hipIpcMemHandle_t handle)
{
    CUdeviceptr address = 0;
    CUipcMemHandle of_driver;
    _Static_assert(sizeof(of_driver) == sizeof(handle), "the runtime's handles are the driver's");
    HIP_CUDA_DRIVER(cuIpcOpenMemHandle, open_handle);
    memcpy(&of_driver, &handle, sizeof(of_driver));
    const hipError_t e = (hipError_t)open_handle(&address, of_driver, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    if (e == cudaSuccess)
        *ret = (void *)(uintptr_t)address;
    return e;
}

#else

#define HIP_HERE false

struct hip_here {
    int unused;
};

struct hip_here_before {
    int unused;
};

static inline hipError_t hip_here_learn(int device, struct hip_here *ret)
{
    (void)device;
    (void)ret;
    return hipErrorNotSupported;
}

static inline hipError_t hip_here_enter(const struct hip_here *here, struct hip_here_before *ret)
{
    (void)here;
    (void)ret;
    return hipErrorNotSupported;
}

static inline hipError_t hip_here_leave(struct hip_here_before *before)
{
    (void)before;
    return hipErrorNotSupported;
}

static inline hipError_t hip_here_open(void **ret, hipIpcMemHandle_t handle)
{
    (void)ret;
    (void)handle;
    return hipErrorNotSupported;
}

#endif
