/* The arenas of a device, counted: what models have, and what is free, at the same moment. */
#include "daemon/device/driver.h"
#include "daemon/device/spare.h"
#include "proto/min.h"

#include <errno.h>
#include <time.h>

/* How often a device is asked, a millisecond apart, until no arena is made or freed meanwhile. Else the free memory and
 * the memory of models would not be of the same moment. */
#define ASK_TRIES 100u

int device_survey(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    uint64_t available = 0, taken = 0, kept = 0;
    bool settled = false;
    for (unsigned tries = 0; tries < ASK_TRIES && !settled; tries++) {
        const unsigned moves = atomic_load(&device->moves);
        const bool still = atomic_load(&device->moving) == 0;
        const uint64_t before = atomic_load(&device->taken);
        int r = device_memory_free(device, &available, ret_fault);
        if (r < 0)
            return r;
        taken = atomic_load(&device->taken);
        taken = min_u64(before, taken);
        kept = device_spare_bytes(device);
        settled = still && atomic_load(&device->moving) == 0 && atomic_load(&device->moves) == moves;
        if (!settled)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    /* An allocation takes long. The driver may count its bytes as taken already, so they are added here: too much is
     * better than too little, because an allocation that fails is tried again after an eviction. */
    if (!settled)
        available += min_u64(atomic_load(&device->making), device->total - min_u64(available, device->total));
    if (__builtin_add_overflow(available, taken, ret) || __builtin_add_overflow(*ret, kept, ret))
        *ret = UINT64_MAX;
    if (*ret == 0)
        *ret = 1; /* 0 means: never asked */
    return 0;
}

/* Whether an arena has all its memory at once. On the host it gets memory as it is written to: host.c counts that. */
static bool comes_at_once(const struct device *device)
{
    return !device_is_host(device);
}

/* Reuses a kept arena or makes a new one. If memory is short, kept arenas may be holding it. */
static int arena_get(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault)
{
    if (device_spare_take(device, bytes, gaps, n_gaps, ret))
        return 0;
    int r = device->ops->arena_new(device, bytes, gaps, n_gaps, ret, ret_fault);
    if (r != -ENOMEM || device_spare_bytes(device) == 0)
        return r;
    device_spares_release(device);
    return device->ops->arena_new(device, bytes, gaps, n_gaps, ret, ret_fault);
}

int device_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    device_move_begin(device);
    atomic_fetch_add(&device->making, comes_at_once(device) ? bytes : 0);
    r = arena_get(device, bytes, gaps, n_gaps, ret, ret_fault);
    if (r == 0 && comes_at_once(device))
        atomic_fetch_add(&device->taken, bytes);
    atomic_fetch_sub(&device->making, comes_at_once(device) ? bytes : 0);
    device_move_end(device);
    device_call_end(device, &call);
    return r;
}

int device_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                       struct device_export *ret_export, struct device_fault *ret_fault)
{
    device_move_begin(device);
    int r = device->ops->arena_adopt(device, fd, bytes, ret, ret_export, ret_fault);
    if (r == 0 && comes_at_once(device))
        atomic_fetch_add(&device->taken, bytes);
    device_move_end(device);
    return r;
}

void device_arena_free(struct device *device, struct arena *arena, uint64_t bytes)
{
    struct device_call call;
    struct device_fault unused;
    if (device_call_begin(device, &call, &unused) < 0)
        return;
    device_move_begin(device);
    device->ops->arena_free(arena);
    if (comes_at_once(device))
        atomic_fetch_sub(&device->taken, bytes);
    device_move_end(device);
    device_call_end(device, &call);
}
