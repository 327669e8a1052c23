#include "kernels/hip_share.h"

#define GRANULE ((uint64_t)2 << 20)
/* A device that wants more cannot be right. */
#define GRANULE_MAX ((uint64_t)1 << 30)

hipMemAllocationProp hip_share_properties(int device)
{
    return (hipMemAllocationProp){
        .type = hipMemAllocationTypePinned,
        .requestedHandleType = hipMemHandleTypePosixFileDescriptor,
        .location = {.type = hipMemLocationTypeDevice, .id = device},
    };
}

hipError_t hip_share_granule(int device, uint64_t *ret, const char **ret_call)
{
    const hipMemAllocationProp properties = hip_share_properties(device);
    size_t granule = 0;
    *ret_call = HIP_NAME_DRIVER(MemGetAllocationGranularity);
    hipError_t result = hipMemGetAllocationGranularity(&granule, &properties, hipMemAllocationGranularityMinimum);
    if (result != hipSuccess)
        return result;
    if (granule == 0 || granule > GRANULE_MAX || (granule & (granule - 1)) != 0)
        return hipErrorNotSupported;
    *ret = granule > GRANULE ? granule : GRANULE;
    return hipSuccess;
}

hipError_t hip_share_map(int device, hipMemGenericAllocationHandle_t handle, uint64_t bytes, hipMemAccessFlags access,
                         struct hip_share *ret, const char **ret_call)
{
    const hipMemAccessDesc wanted = {
        .location = {.type = hipMemLocationTypeDevice, .id = device},
        .flags = access,
    };
    void *base = NULL;
    *ret_call = HIP_NAME_DRIVER(MemAddressReserve);
    hipError_t result = hipMemAddressReserve(&base, bytes, 0, NULL, 0);
    if (result != hipSuccess)
        goto fail;
    *ret_call = HIP_NAME_DRIVER(MemMap);
    result = hipMemMap(base, bytes, 0, handle, 0);
    if (result != hipSuccess)
        goto fail_address;
    *ret_call = HIP_NAME_DRIVER(MemSetAccess);
    result = hipMemSetAccess(base, bytes, &wanted, 1);
    if (result != hipSuccess)
        goto fail_map;
    *ret = (struct hip_share){.handle = handle, .base = base, .bytes = bytes};
    return hipSuccess;

fail_map:
    (void)!hipMemUnmap(base, bytes);
fail_address:
    (void)!hipMemAddressFree(base, bytes);
fail:
    (void)!hipMemRelease(handle);
    return result;
}

hipError_t hip_share_import(int device, int fd, uint64_t bytes, hipMemAccessFlags access, struct hip_share *ret,
                            const char **ret_call)
{
    hipMemGenericAllocationHandle_t handle;
    hipError_t result = hip_import_descriptor(&handle, fd, ret_call);
    return result != hipSuccess ? result : hip_share_map(device, handle, bytes, access, ret, ret_call);
}

void hip_share_drop(struct hip_share *share)
{
    (void)!hipMemUnmap(share->base, share->bytes);
    (void)!hipMemAddressFree(share->base, share->bytes);
    (void)!hipMemRelease(share->handle);
}
