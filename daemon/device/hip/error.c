#include "daemon/device/hip/error.h"

#include <errno.h>

/* Errors that a device does not recover from while the process lives.
 *
 * Source: CUDA 13's driver_types.h, all errors of which it says that the process must be terminated and relaunched; and
 * 100, 214, 220 and 709. HIP's hip_runtime_api.h (7.1) has fewer errors. Those that it has mean the same, but for 911.
 * Other errors may be as bad, 999 for one: after those the device is asked whether it still works. */
static const int fatal_codes[] = {
    100, /* no device */
    214, /* uncorrectable ECC error */
    220, /* uncorrectable NVLink error */
    226, /* contained error */
    700, /* illegal address */
    702, /* launch timeout */
    709, /* context is destroyed */
    710, /* assert in a kernel */
    714, /* hardware stack error */
    715, /* illegal instruction */
    716, /* misaligned address */
    717, /* invalid address space */
    718, /* invalid program counter */
    719, /* launch failure */
    721, /* tensor memory leak */
    810, /* MPS client terminated */
#if defined(ROCMFORGE_CUDA)
    911, /* error of an external device; in HIP it is an invalid channel descriptor */
#endif
};

static bool fatal(hipError_t result)
{
    for (size_t i = 0; i < sizeof(fatal_codes) / sizeof(fatal_codes[0]); i++)
        if ((int)result == fatal_codes[i])
            return true;
    return false;
}

/* Whether the device still works. */
static bool answers(struct hip_device *hip)
{
    uint64_t word;
    return !hip->word || (hipSetDevice(hip->index) == hipSuccess &&
                          hipMemcpy(&word, hip->word, sizeof(word), hipMemcpyDeviceToHost) == hipSuccess);
}

void hip_lose(struct hip_device *hip, const struct device_fault *fault)
{
    pthread_mutex_lock(&hip->lost_lock);
    if (!atomic_load(&hip->lost))
        hip->lost_by = *fault;
    atomic_store(&hip->lost, true);
    pthread_mutex_unlock(&hip->lost_lock);
}

int hip_result(struct hip_device *hip, hipError_t result, const char *call, struct device_fault *ret_fault)
{
    if (result == hipSuccess)
        return 0;
    struct device_fault fault;
    int error = device_fault_set(&fault, result == hipErrorOutOfMemory ? -ENOMEM : -EIO, call, (int)result,
                                 hipGetErrorString(result));
    /* Other errors may concern this call only, or every call from now on. Drivers return 999 for both. */
    if (fatal(result) || (hip && error == -EIO && !answers(hip))) {
        error = -ENODEV;
        if (hip)
            hip_lose(hip, &fault);
    }
    if (ret_fault)
        *ret_fault = fault;
    return error;
}

int hip_enter(struct hip_device *hip, struct device_fault *ret_fault)
{
    if (atomic_load(&hip->lost)) {
        pthread_mutex_lock(&hip->lost_lock);
        *ret_fault = hip->lost_by;
        pthread_mutex_unlock(&hip->lost_lock);
        return -ENODEV;
    }
    return HIP_CALL(hip, ret_fault, SetDevice, (hip->index));
}
