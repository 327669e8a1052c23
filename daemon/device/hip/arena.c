#include "daemon/device/hip/arena.h"

#include "daemon/device/hip/error.h"
#include "daemon/device/hip/reclaim.h"
#include "daemon/device/hip/share.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The memory may hold another user's old data. Parts that no data will be put into are cleared, on a stream of their
 * own, while the file is being read. Clearing all of it would delay the first copies by a third of a millisecond for
 * each gigabyte. The first copy waits for the event `cleared`. */
static int clear(struct arena *arena, uint64_t used, const struct extent *gaps, size_t n_gaps,
                 struct device_fault *ret_fault)
{
    struct hip_device *hip = arena->hip;
    uint8_t *base = arena->memory.base;
    int r = 0;
    for (size_t i = 0; i < n_gaps && r == 0; i++) {
        assert(gaps[i].offset <= used && gaps[i].bytes <= used - gaps[i].offset);
        r = HIP_CALL(hip, ret_fault, MemsetAsync, (base + gaps[i].offset, 0, gaps[i].bytes, hip->clearing));
    }
    const uint64_t bytes = arena->memory.bytes;
    if (r == 0 && used < bytes)
        r = HIP_CALL(hip, ret_fault, MemsetAsync, (base + used, 0, bytes - used, hip->clearing));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, EventRecord, (arena->cleared, hip->clearing));
    if (r < 0)
        (void)!hipStreamSynchronize(hip->clearing);
    return r;
}

/* An arena without memory. After an error arena_drop() is not called. */
static int arena_begin(struct hip_device *hip, struct arena **ret, struct device_fault *ret_fault)
{
    int r = hip_enter(hip, ret_fault);
    if (r < 0)
        return r;
    struct arena *arena = calloc(1, sizeof(*arena));
    if (!arena)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    arena->hip = hip;
    arena->fd = -1;
    r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&arena->cleared, hipEventBlockingSync | hipEventDisableTiming));
    if (r < 0) {
        free(arena);
        return r;
    }
    *ret = arena;
    return 0;
}

static void arena_drop(struct arena *arena)
{
    (void)!hipEventDestroy(arena->cleared);
    free(arena);
}

/* A whole number of granules: then no other allocation shares the memory that an exported handle opens, and a
 * descriptor is mapped as a whole. */
static int round_up(const struct device *device, uint64_t bytes, uint64_t *ret, struct device_fault *ret_fault)
{
    uint64_t rounded;
    if (__builtin_add_overflow(bytes, device->granule - 1, &rounded))
        return device_fault_set(ret_fault, -ENOMEM, "hip_arena_new", 0, "too large");
    *ret = rounded - rounded % device->granule;
    return 0;
}

int hip_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps, struct arena **ret,
                  struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    struct arena *arena = NULL;
    uint64_t rounded = 0;
    int r = round_up(device, bytes, &rounded, ret_fault);
    if (r == 0)
        r = arena_begin(hip, &arena, ret_fault);
    if (r < 0)
        return r;
    r = hip_memory_take(hip, rounded, &arena->memory, ret_fault);
    if (r < 0)
        goto fail;
    r = clear(arena, bytes, gaps, n_gaps, ret_fault);
    if (r < 0)
        goto fail_memory;
    *ret = arena;
    return 0;

fail_memory:
    hip_memory_release(hip, &arena->memory);
fail:
    arena_drop(arena);
    return r;
}

/* The previous model's bytes are treated as any other old data in new memory. No client of that model had access to
 * this memory. */
int hip_arena_reuse(struct arena *arena, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                    struct device_fault *ret_fault)
{
    assert(!arena->adopted && bytes <= arena->memory.bytes);
    int r = hip_enter(arena->hip, ret_fault);
    if (r < 0)
        return r;
    arena->ordered = false;
    return clear(arena, bytes, gaps, n_gaps, ret_fault);
}

/* The memory is complete, so `cleared` is never recorded: who waits for it does not wait. */
int hip_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret, struct device_export *ret_export,
                    struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    struct arena *arena = NULL;
    uint64_t rounded = 0;
    if (device->export_kind != EXPORT_FD)
        return device_fault_set(ret_fault, -ENOTSUP, "hip_arena_adopt", 0, "the device exports no descriptors");
    int r = round_up(device, bytes, &rounded, ret_fault);
    if (r == 0)
        r = arena_begin(hip, &arena, ret_fault);
    if (r < 0)
        return r;
    r = hip_share_adopt(hip, fd, rounded, &arena->memory, ret_fault);
    if (r < 0) {
        arena_drop(arena);
        return r;
    }
    arena->fd = fd;
    arena->adopted = true;
    *ret = arena;
    *ret_export = (struct device_export){.fd = fd};
    return 0;
}

/* On a lost device every call fails. The driver frees its memory when the process ends. */
void hip_arena_free(struct arena *arena)
{
    if (!arena)
        return;
    (void)!hipSetDevice(arena->hip->index);
    (void)!hipEventSynchronize(arena->cleared);
    /* Runtimes do not wait for what uses memory of another process before they unmap it. */
    if (arena->adopted)
        (void)!hipDeviceSynchronize();
    hip_memory_release(arena->hip, &arena->memory);
    if (arena->fd >= 0)
        close(arena->fd);
    arena_drop(arena);
}

static int export_descriptor(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    /* Memory that is used again has its descriptor, which no other process ever got. */
    int r = arena->fd >= 0 ? 0 : hip_share_export(arena->hip, &arena->memory, &arena->fd, ret_fault);
    if (r == 0)
        *ret = (struct device_export){.fd = arena->fd};
    return r;
}

static int export_handle(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    hipIpcMemHandle_t handle;
    int r = HIP_CALL(arena->hip, ret_fault, IpcGetMemHandle, (&handle, arena->memory.base));
    if (r < 0)
        return r;
    struct device_export export = {.fd = -1, .handle_size = sizeof(handle)};
    _Static_assert(sizeof(handle) <= sizeof(export.handle), "the wire carries 64 bytes");
    memcpy(export.handle, &handle, sizeof(handle));
    *ret = export;
    return 0;
}

int hip_arena_export(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    assert(!arena->adopted);
    struct hip_device *hip = arena->hip;
    int r = hip_enter(hip, ret_fault);
    if (r < 0)
        return r;
    return hip->device.export_kind == EXPORT_FD ? export_descriptor(arena, ret, ret_fault)
                                                : export_handle(arena, ret, ret_fault);
}

/* All transfers are done, and each waited for the clearing. But there may have been no transfer. */
int hip_arena_seal(struct arena *arena, struct device_fault *ret_fault)
{
    int r = hip_enter(arena->hip, ret_fault);
    return r < 0 ? r : HIP_CALL(arena->hip, ret_fault, EventSynchronize, (arena->cleared));
}

/* Clearing has to end before another process writes to the memory, or reads old data of another user there. */
int hip_arena_lend(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    int r = hip_arena_seal(arena, ret_fault);
    return r < 0 ? r : hip_arena_export(arena, ret, ret_fault);
}
