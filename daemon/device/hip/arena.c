#include "daemon/device/hip/arena.h"

#include "daemon/device/hip/error.h"
#include "daemon/device/hip/reclaim.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Size of the trial allocation for exports. It is much larger than what a driver may keep or release beside it. */
#define TRIAL_BYTES ((size_t)64 << 20)

/* The memory may hold another user's old data. Parts that no data will be put into are cleared, on a stream of their
 * own, while the file is being read. Clearing all of it would delay the first copies by a third of a millisecond for
 * each gigabyte. The first copy waits for the event `cleared`. */
static int clear(struct arena *arena, uint64_t used, const struct extent *gaps, size_t n_gaps,
                 struct device_fault *ret_fault)
{
    struct hip_device *hip = arena->hip;
    uint8_t *base = arena->base;
    int r = 0;
    for (size_t i = 0; i < n_gaps && r == 0; i++) {
        assert(gaps[i].offset <= used && gaps[i].bytes <= used - gaps[i].offset);
        r = HIP_CALL(hip, ret_fault, MemsetAsync, (base + gaps[i].offset, 0, gaps[i].bytes, hip->clearing));
    }
    if (r == 0 && used < arena->bytes)
        r = HIP_CALL(hip, ret_fault, MemsetAsync, (base + used, 0, arena->bytes - used, hip->clearing));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, EventRecord, (arena->cleared, hip->clearing));
    if (r < 0)
        (void)!hipStreamSynchronize(hip->clearing);
    return r;
}

int hip_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps, struct arena **ret,
                  struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    int r = hip_enter(hip, ret_fault);
    if (r < 0)
        return r;
    struct arena *arena = calloc(1, sizeof(*arena));
    if (!arena)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    arena->hip = hip;
    /* A whole number of granules: then no other allocation shares the memory that the exported handle opens. */
    if (__builtin_add_overflow(bytes, device->granule - 1, &arena->bytes)) {
        r = device_fault_set(ret_fault, -ENOMEM, HIP_NAME(Malloc), 0, "too large");
        goto fail;
    }
    arena->bytes -= arena->bytes % device->granule;
    r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&arena->cleared, hipEventBlockingSync | hipEventDisableTiming));
    if (r < 0)
        goto fail;
    r = hip_memory_take(hip, arena->bytes, &arena->base, ret_fault);
    if (r < 0)
        goto fail_event;
    r = clear(arena, bytes, gaps, n_gaps, ret_fault);
    if (r < 0)
        goto fail_memory;
    *ret = arena;
    return 0;

fail_memory:
    hip_memory_release(hip, arena->base, arena->bytes);
fail_event:
    (void)!hipEventDestroy(arena->cleared);
fail:
    free(arena);
    return r;
}

/* On a lost device every call fails. The driver frees its memory when the process ends. */
void hip_arena_free(struct arena *arena)
{
    if (!arena)
        return;
    (void)!hipSetDevice(arena->hip->index);
    (void)!hipEventSynchronize(arena->cleared);
    hip_memory_release(arena->hip, arena->base, arena->bytes);
    (void)!hipEventDestroy(arena->cleared);
    free(arena);
}

int hip_arena_export(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    assert(!arena->exported);
    struct hip_device *hip = arena->hip;
    int r = hip_enter(hip, ret_fault);
    if (r < 0)
        return r;
    hipIpcMemHandle_t handle;
    r = HIP_CALL(hip, ret_fault, IpcGetMemHandle, (&handle, arena->base));
    if (r < 0)
        return r;
    struct device_export export = {.fd = -1, .handle_size = sizeof(handle)};
    _Static_assert(sizeof(handle) <= sizeof(export.handle), "the wire carries 64 bytes");
    memcpy(export.handle, &handle, sizeof(handle));
    arena->exported = true;
    *ret = export;
    return 0;
}

/* Exports the memory and frees it. *ret_back is how many bytes became free by that. */
static int export_and_free(struct hip_device *hip, void *memory, uint64_t *ret_back, struct device_fault *ret_fault)
{
    hipIpcMemHandle_t handle;
    size_t before = 0, after = 0, total;
    int r = HIP_CALL(hip, ret_fault, IpcGetMemHandle, (&handle, memory));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, MemGetInfo, (&before, &total));
    hipError_t freed = hipFree(memory);
    if (r == 0)
        r = hip_result(hip, freed, HIP_NAME(Free), ret_fault);
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, MemGetInfo, (&after, &total));
    if (r == 0)
        *ret_back = after > before ? after - before : 0;
    return r;
}

int hip_export_try(struct hip_device *hip, uint64_t wanted, struct device_fault *ret_fault)
{
    const uint64_t trial = wanted ? wanted : TRIAL_BYTES;
    struct device_fault fault;
    void *memory;
    uint64_t bytes = trial, back = 0;
    int r = HIP_CALL(hip, &fault, Malloc, (&memory, bytes));
    if (r == -ENOMEM) {
        /* Other programs use most of the memory. So small a trial does not show whether memory comes back. */
        bytes = hip->device.granule;
        r = HIP_CALL(hip, &fault, Malloc, (&memory, bytes));
    }
    if (r == 0)
        r = export_and_free(hip, memory, &back, &fault);
    if (r < 0)
        *ret_fault = fault;
    else
        hip->device.exports_leak = bytes == trial && back < bytes / 2;
    return r;
}

/* All transfers are done, and each waited for the clearing. But there may have been no transfer. */
int hip_arena_seal(struct arena *arena, struct device_fault *ret_fault)
{
    int r = hip_enter(arena->hip, ret_fault);
    return r < 0 ? r : HIP_CALL(arena->hip, ret_fault, EventSynchronize, (arena->cleared));
}
