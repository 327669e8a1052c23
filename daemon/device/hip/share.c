#include "daemon/device/hip/share.h"

#include "daemon/device/hip/error.h"

#include <errno.h>
#include <fcntl.h>

static hipError_t create(struct hip_device *hip, uint64_t bytes, hipMemGenericAllocationHandle_t *ret)
{
    const hipMemAllocationProp properties = hip_share_properties(hip->index);
    return hipMemCreate(ret, bytes, &properties, 0);
}

int hip_share_make(struct hip_device *hip, uint64_t bytes, struct hip_share *ret, struct device_fault *ret_fault)
{
    hipMemGenericAllocationHandle_t handle;
    const char *call = HIP_NAME_DRIVER(MemCreate);
    hipError_t result = create(hip, bytes, &handle);
    if (result == hipSuccess)
        result = hip_share_map(hip->index, handle, bytes, hipMemAccessFlagsProtReadWrite, ret, &call);
    return hip_result(hip, result, call, ret_fault);
}

int hip_share_export(struct hip_device *hip, const struct hip_share *share, int *ret, struct device_fault *ret_fault)
{
    int fd = -1;
    hipError_t result = hipMemExportToShareableHandle(&fd, share->handle, hipMemHandleTypePosixFileDescriptor, 0);
    int r = hip_result(hip, result, HIP_NAME_DRIVER(MemExportToShareableHandle), ret_fault);
    if (r < 0)
        return r;
    /* Runtimes differ in this. An error says that it is no descriptor. */
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return device_fault_set(ret_fault, -EIO, HIP_NAME_DRIVER(MemExportToShareableHandle), errno,
                                "it makes no descriptor");
    *ret = fd;
    return 0;
}

int hip_share_adopt(struct hip_device *hip, int fd, uint64_t bytes, struct hip_share *ret,
                    struct device_fault *ret_fault)
{
    const char *call;
    hipError_t result = hip_share_import(hip->index, fd, bytes, hipMemAccessFlagsProtRead, ret, &call);
    return hip_result(hip, result, call, ret_fault);
}

void hip_share_touch(struct hip_device *hip, uint64_t bytes)
{
    hipMemGenericAllocationHandle_t handle;
    if (create(hip, bytes, &handle) == hipSuccess)
        (void)!hipMemRelease(handle);
}
