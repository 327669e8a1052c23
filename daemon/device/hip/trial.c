#include "daemon/device/hip/trial.h"

#include "daemon/device/hip/error.h"
#include "daemon/device/hip/share.h"
#include "proto/min.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* Size of the trial allocation. It is much larger than what a driver may keep or release beside it. */
#define TRIAL_BYTES ((uint64_t)64 << 20)

/* What the last bytes of a trial allocation hold, to be read through the other mapping. */
#define PATTERN UINT64_C(0x0123456789abcdef)

static int memory_free(struct hip_device *hip, size_t *ret, struct device_fault *ret_fault)
{
    size_t total;
    return HIP_CALL(hip, ret_fault, MemGetInfo, (ret, &total));
}

/* Reads the last bytes of the memory through a second mapping, a client's. */
static int import_and_read(struct hip_device *hip, const struct hip_share *share, int fd,
                           struct device_fault *ret_fault)
{
    struct hip_share imported;
    const uint64_t at = share->bytes - sizeof(uint64_t), pattern = PATTERN;
    uint64_t found = 0;
    int r = HIP_CALL(hip, ret_fault, Memcpy,
                     ((uint8_t *)share->base + at, &pattern, sizeof(pattern), hipMemcpyHostToDevice));
    if (r < 0)
        return r;
    r = hip_share_adopt(hip, fd, share->bytes, &imported, ret_fault);
    if (r < 0)
        return r;
    r = HIP_CALL(hip, ret_fault, Memcpy,
                 (&found, (const uint8_t *)imported.base + at, sizeof(found), hipMemcpyDeviceToHost));
    hip_share_drop(&imported);
    if (r == 0 && found != PATTERN)
        r = device_fault_set(ret_fault, -EIO, HIP_NAME_DRIVER(MemImportFromShareableHandle), 0, "other bytes are read");
    return r;
}

static int export_descriptor(struct hip_device *hip, const struct hip_share *share, struct device_fault *ret_fault)
{
    int fd;
    int r = hip_share_export(hip, share, &fd, ret_fault);
    if (r < 0)
        return r;
    r = import_and_read(hip, share, fd, ret_fault);
    close(fd);
    return r;
}

/* Exports memory of so many bytes by descriptor and frees it. *ret_back: how many bytes became free by that. */
static int descriptor_try(struct hip_device *hip, uint64_t bytes, uint64_t *ret_back, struct device_fault *ret_fault)
{
    struct hip_share share;
    size_t before = 0, after = 0;
    int r = hip_share_make(hip, bytes, &share, ret_fault);
    if (r < 0)
        return r;
    r = export_descriptor(hip, &share, ret_fault);
    if (r == 0)
        r = memory_free(hip, &before, ret_fault);
    hip_share_drop(&share);
    if (r == 0)
        r = memory_free(hip, &after, ret_fault);
    if (r == 0)
        *ret_back = after > before ? after - before : 0;
    return r;
}

/* The same by IPC handle. */
static int handle_try(struct hip_device *hip, uint64_t bytes, uint64_t *ret_back, struct device_fault *ret_fault)
{
    void *memory;
    hipIpcMemHandle_t handle;
    size_t before = 0, after = 0;
    int r = HIP_CALL(hip, ret_fault, Malloc, (&memory, bytes));
    if (r < 0)
        return r;
    r = HIP_CALL(hip, ret_fault, IpcGetMemHandle, (&handle, memory));
    if (r == 0)
        r = memory_free(hip, &before, ret_fault);
    hipError_t freed = hipFree(memory);
    if (r == 0)
        r = hip_result(hip, freed, HIP_NAME(Free), ret_fault);
    if (r == 0)
        r = memory_free(hip, &after, ret_fault);
    if (r == 0)
        *ret_back = after > before ? after - before : 0;
    return r;
}

/* Tries a kind of export with `wanted` bytes; or, if other programs use most of the memory, with one granule. So small
 * a trial does not show whether memory comes back. */
static int kind_try(struct hip_device *hip,
                    int (*try)(struct hip_device *hip, uint64_t bytes, uint64_t *ret_back,
                               struct device_fault *ret_fault),
                    uint64_t wanted, struct device_fault *ret_fault)
{
    uint64_t back = 0;
    int r = try(hip, wanted, &back, ret_fault);
    if (r == -ENOMEM)
        return try(hip, hip->device.granule, &back, ret_fault);
    if (r == 0)
        hip->device.exports_leak = back < wanted / 2;
    return r;
}

static int descriptors_try(struct hip_device *hip, uint64_t wanted, struct device_fault *ret_fault)
{
    uint64_t granule;
    const char *call;
    hipError_t result = hip_share_granule(hip->index, &granule, &call);
    int r = hip_result(hip, result, call, ret_fault);
    if (r < 0)
        return r;
    const uint64_t before = hip->device.granule;
    hip->device.granule = max_u64(granule, before);
    r = kind_try(hip, descriptor_try, (wanted + granule - 1) / granule * granule, ret_fault);
    if (r == 0)
        hip->device.export_kind = EXPORT_FD;
    else
        hip->device.granule = before;
    return r;
}

int hip_export_try(struct hip_device *hip, enum export_wish wish, uint64_t wanted, struct device_fault *ret_fault)
{
    struct device *device = &hip->device;
    struct device_fault fault = {0};
    const uint64_t bytes = wanted ? wanted : TRIAL_BYTES;
    int r = -ENOTSUP;
    if (wish != EXPORT_WISH_IPC) {
        r = descriptors_try(hip, bytes, &fault);
        if (r < 0 && r != -ENODEV && wish == EXPORT_WISH_AUTO)
            snprintf(device->no_descriptors, sizeof(device->no_descriptors), "%s: %.100s (%d)", fault.call, fault.text,
                     fault.code);
    }
    if (r < 0 && r != -ENODEV && wish != EXPORT_WISH_FD) {
        device->export_kind = EXPORT_IPC;
        r = kind_try(hip, handle_try, bytes, &fault);
    }
    if (r < 0)
        *ret_fault = fault;
    return r;
}
