#include "daemon/device/hip/reclaim.h"

#include "daemon/device/hip/error.h"
#include "daemon/device/hip/share.h"

/* Fewer freed bytes are not worth an allocation. */
#define RECLAIM_BYTES ((uint64_t)256 << 20)
/* How long the device has had nothing to do: this, and the time that the driver needs to clear the freed memory. */
#define RECLAIM_NS         100000000u
#define RECLAIM_NS_PER_KIB 8u

static bool by_descriptor(const struct hip_device *hip)
{
    return hip->device.export_kind == EXPORT_FD;
}

static int take(struct hip_device *hip, uint64_t bytes, struct hip_share *ret, struct device_fault *ret_fault)
{
    void *memory;
    if (by_descriptor(hip))
        return hip_share_make(hip, bytes, ret, ret_fault);
    int r = HIP_CALL(hip, ret_fault, Malloc, (&memory, bytes));
    if (r == 0)
        *ret = (struct hip_share){.base = memory, .bytes = bytes};
    return r;
}

int hip_memory_take(struct hip_device *hip, uint64_t bytes, struct hip_share *ret, struct device_fault *ret_fault)
{
    pthread_mutex_lock(&hip->reclaim.taking);
    /* The allocation below does the work that a reclaim would do. */
    pthread_mutex_lock(&hip->lock);
    hip->reclaim.freed = hip->reclaim.due_ns = 0;
    pthread_mutex_unlock(&hip->lock);
    int r = take(hip, bytes, ret, ret_fault);
    pthread_mutex_unlock(&hip->reclaim.taking);
    return r;
}

void hip_memory_release(struct hip_device *hip, struct hip_share *memory)
{
    if (by_descriptor(hip))
        hip_share_drop(memory);
    else
        (void)!hipFree(memory->base);
    pthread_mutex_lock(&hip->lock);
    hip->reclaim.freed += memory->bytes;
    hip_reclaim_postpone(hip);
    pthread_cond_signal(&hip->submitter_wake);
    pthread_mutex_unlock(&hip->lock);
}

void hip_reclaim_postpone(struct hip_device *hip)
{
    if (hip->reclaim.freed >= RECLAIM_BYTES)
        hip->reclaim.due_ns = device_clock_ns() + RECLAIM_NS + hip->reclaim.freed / 1024 * RECLAIM_NS_PER_KIB;
}

/* Called without hip->lock. Any allocation makes the driver finish its work on freed memory, however small it is. */
static void reclaim(struct hip_device *hip)
{
    void *memory;
    if (atomic_load(&hip->lost) || hipSetDevice(hip->index) != hipSuccess)
        return;
    pthread_mutex_lock(&hip->reclaim.taking);
    if (by_descriptor(hip))
        hip_share_touch(hip, hip->device.granule);
    else if (hipMalloc(&memory, hip->device.granule) == hipSuccess)
        (void)!hipFree(memory);
    pthread_mutex_unlock(&hip->reclaim.taking);
}

void hip_reclaim_if_due(struct hip_device *hip)
{
    if (hip->reclaim.due_ns == 0 || device_clock_ns() < hip->reclaim.due_ns)
        return;
    hip->reclaim.freed = hip->reclaim.due_ns = 0;
    pthread_mutex_unlock(&hip->lock);
    reclaim(hip);
    pthread_mutex_lock(&hip->lock);
}
