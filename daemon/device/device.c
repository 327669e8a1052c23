#include "daemon/device/device.h"

#include "proto/min.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

const char *export_kind_name(enum export_kind kind)
{
    switch (kind) {
    case EXPORT_MEMFD:
        return "memfd";
    case EXPORT_IPC:
        return "ipc";
    case EXPORT_FD:
        return "fd";
    }
    return "unknown";
}

uint64_t device_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int device_fault_set(struct device_fault *fault, int error, const char *call, int code, const char *text)
{
    if (fault) {
        snprintf(fault->call, sizeof(fault->call), "%s", call);
        snprintf(fault->text, sizeof(fault->text), "%s", text ? text : "");
        fault->code = code;
    }
    return error;
}

bool device_kind_is_host(const char *kind)
{
    return strcmp(kind, DEVICE_HOST) == 0;
}

bool device_is_host(const struct device *device)
{
    return device_kind_is_host(device->kind);
}

uint64_t device_limit(const struct device *device)
{
    if (device->failed)
        return 0;
    return device->reach > 0 ? min_u64(device->reach, device->budget) : device->budget;
}

uint64_t device_available(const struct device *device)
{
    const uint64_t limit = device_limit(device);
    uint64_t taken;
    if (__builtin_add_overflow(device->used, device->queued, &taken))
        return 0;
    return limit > taken ? limit - taken : 0;
}

uint64_t device_others(const struct device *device)
{
    return device->reach > 0 && device->reach < device->total ? device->total - device->reach : 0;
}

/* How often a device is asked, a millisecond apart, until no arena is made or freed meanwhile. Else the free memory and
 * the memory of models would not be of the same moment. */
#define ASK_TRIES 100u

int device_survey(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    uint64_t available = 0, taken = 0;
    bool settled = false;
    for (unsigned tries = 0; tries < ASK_TRIES && !settled; tries++) {
        const unsigned moves = atomic_load(&device->moves);
        const bool still = atomic_load(&device->moving) == 0;
        const uint64_t before = atomic_load(&device->taken);
        int r = device->ops->memory_free(device, &available, ret_fault);
        if (r < 0)
            return r;
        taken = atomic_load(&device->taken);
        taken = min_u64(before, taken);
        settled = still && atomic_load(&device->moving) == 0 && atomic_load(&device->moves) == moves;
        if (!settled)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    /* An allocation takes long. The driver may count its bytes as taken already, so they are added here: too much is
     * better than too little, because an allocation that fails is tried again after an eviction. */
    if (!settled)
        available += min_u64(atomic_load(&device->making), device->total - min_u64(available, device->total));
    if (__builtin_add_overflow(available, taken, ret))
        *ret = UINT64_MAX;
    if (*ret == 0)
        *ret = 1; /* 0 is for one that never was asked */
    return 0;
}

static void move_begin(struct device *device)
{
    atomic_fetch_add(&device->moving, 1);
}

static void move_end(struct device *device)
{
    atomic_fetch_add(&device->moves, 1);
    atomic_fetch_sub(&device->moving, 1);
}

/* Whether an arena has all its memory at once. On the host it gets memory as it is written to: host.c counts that. */
static bool comes_at_once(const struct device *device)
{
    return !device_is_host(device);
}

int device_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                     struct arena **ret, struct device_fault *ret_fault)
{
    move_begin(device);
    atomic_fetch_add(&device->making, comes_at_once(device) ? bytes : 0);
    int r = device->ops->arena_new(device, bytes, gaps, n_gaps, ret, ret_fault);
    if (r == 0 && comes_at_once(device))
        atomic_fetch_add(&device->taken, bytes);
    atomic_fetch_sub(&device->making, comes_at_once(device) ? bytes : 0);
    move_end(device);
    return r;
}

int device_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                       struct device_export *ret_export, struct device_fault *ret_fault)
{
    move_begin(device);
    int r = device->ops->arena_adopt(device, fd, bytes, ret, ret_export, ret_fault);
    if (r == 0 && comes_at_once(device))
        atomic_fetch_add(&device->taken, bytes);
    move_end(device);
    return r;
}

void device_arena_free(struct device *device, struct arena *arena, uint64_t bytes)
{
    move_begin(device);
    device->ops->arena_free(arena);
    if (comes_at_once(device))
        atomic_fetch_sub(&device->taken, bytes);
    move_end(device);
}
