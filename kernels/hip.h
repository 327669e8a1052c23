/* One set of names for two GPU runtimes: with ROCm's headers these are HIP itself, with CUDA's they are defined in
 * kernels/hip_cuda.h. */
#pragma once

#if defined(ROCMFORGE_CUDA)
#include "kernels/hip_cuda.h"
#else
#include <hip/hip_runtime_api.h>
#define HIP_KIND              "hip"
#define HIP_VENDOR            "AMD"
#define HIP_NAME(call)        "hip" #call
#define HIP_NAME_DRIVER(call) "hip" #call
#endif

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define HIP_UUID_SIZE 37
#define HIP_WHY_SIZE  128
#define HIP_ARCH_SIZE 32

/* Writes a UUID in the form that the vendor's tools print. AMD's 16 bytes are ASCII digits: "GPU-4c6a51b5d1f2c3a7",
 * as in rocminfo. NVIDIA's are written as 8-4-4-4-12 hexadecimal digits, as in nvidia-smi but without its "GPU-".
 * The daemon and the clients compare these texts. */
static inline void hip_uuid_text(const hipUUID *uuid, char ret[HIP_UUID_SIZE])
{
    static const int groups[] = {4, 2, 2, 2, 6};
    size_t at = 0, byte = 0;
    char text[sizeof(uuid->bytes) + 1] = "";
    memcpy(text, uuid->bytes, sizeof(uuid->bytes));
    if (strspn(text, "0123456789abcdefABCDEF") == sizeof(uuid->bytes)) {
        snprintf(ret, HIP_UUID_SIZE, "GPU-%s", text);
        return;
    }
    for (size_t group = 0; group < sizeof(groups) / sizeof(groups[0]); group++) {
        if (group > 0)
            ret[at++] = '-';
        for (int i = 0; i < groups[group]; i++, byte++, at += 2)
            snprintf(ret + at, 3, "%02x", (unsigned char)uuid->bytes[byte]);
    }
}

#if !defined(ROCMFORGE_CUDA)
/* Until ROCm 7.0 the runtime takes the address of the descriptor, and from then on the descriptor itself. */
#define HIP_VERSION_DESCRIPTOR 70100000

/* Makes an allocation's handle of a descriptor that another process got from hipMemExportToShareableHandle(). The
 * descriptor stays the caller's. `ret_call`: the name of the call that failed. */
static inline hipError_t hip_import_descriptor(hipMemGenericAllocationHandle_t *ret, int fd, const char **ret_call)
{
    int version = 0;
    *ret_call = HIP_NAME(RuntimeGetVersion);
    hipError_t result = hipRuntimeGetVersion(&version);
    if (result != hipSuccess)
        return result;
    *ret_call = HIP_NAME(MemImportFromShareableHandle);
    void *argument = version < HIP_VERSION_DESCRIPTOR ? (void *)&fd : (void *)(intptr_t)fd;
    return hipMemImportFromShareableHandle(ret, argument, hipMemHandleTypePosixFileDescriptor);
}
#endif

/* Writes the architecture that the code for this device is compiled for: "gfx90a", "sm_90". Empty if the runtime
 * does not tell. */
static inline void hip_architecture(int device, char ret[HIP_ARCH_SIZE])
{
    *ret = '\0';
#if defined(ROCMFORGE_CUDA)
    struct cudaDeviceProp properties;
    if (hip_cuda_properties(&properties, device) == cudaSuccess)
        snprintf(ret, HIP_ARCH_SIZE, "sm_%d%d", properties.major, properties.minor);
#else
    /* The runtime may be newer than the headers here, and its struct larger. New members are added at the end. */
    union {
        hipDeviceProp_t properties;
        char room[sizeof(hipDeviceProp_t) + 4096];
    } u;
    memset(&u, 0, sizeof(u));
    if (hipGetDeviceProperties(&u.properties, device) != hipSuccess)
        return;
    /* The features after the colon are left out: "gfx90a:sramecc+:xnack-". */
    const size_t n = strcspn(u.properties.gcnArchName, ":");
    if (n < HIP_ARCH_SIZE && strncmp(u.properties.gcnArchName, "gfx", 3) == 0) {
        memcpy(ret, u.properties.gcnArchName, n);
        ret[n] = '\0';
    }
#endif
}

/* Says why there is no device, given what hipGetDeviceCount() returned. The result is static or in `buffer`. */
static inline const char *hip_why(hipError_t result, char buffer[HIP_WHY_SIZE])
{
#if defined(ROCMFORGE_CUDA)
    /* CUDA reports a missing driver as one that is too old. */
    int driver = 0;
    if (result == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess) {
        if (driver == 0)
            return "no NVIDIA driver";
        snprintf(buffer, HIP_WHY_SIZE, "the NVIDIA driver is too old: it is for CUDA %d.%d, and %d.0 is needed",
                 driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000);
        return buffer;
    }
#else
    /* The runtime's own text differs: ROCm 5 returns the name of the error, ROCm 6 a sentence. */
    if (result == hipErrorNoDevice)
        return "no device: no AMD GPU that ROCm can use, or no right to open /dev/kfd";
#endif
    (void)buffer;
    return hipGetErrorString(result);
}
