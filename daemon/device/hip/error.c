#include "daemon/device/hip/error.h"

#include <errno.h>

/* Errors that a context does not recover from. HIP and CUDA share these numbers: no device, ECC, NVLink, contained
 * error, illegal address, launch timeout, context destroyed, assert, stack, misaligned address, invalid address space,
 * invalid program counter, launch failure, tensor memory leak. */
static const int fatal_codes[] = {100, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721};

static bool fatal(hipError_t result)
{
    for (size_t i = 0; i < sizeof(fatal_codes) / sizeof(fatal_codes[0]); i++)
        if ((int)result == fatal_codes[i])
            return true;
    return false;
}

/* Whether the device still does what it is told. */
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
    /* The others may be of this call alone, or of all that will ever come: 999 is what drivers say of both. */
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
