#include "daemon/device/hip/reader.h"

#include "daemon/device/hip/error.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Bytes of one half. */
#define HALF ((size_t)4 << 20)
/* Bytes that are saved at once. Other readers come in between. */
#define SAVE_STEP ((size_t)256 << 20)

int hip_reader_make(struct hip_device *hip, struct device_fault *ret_fault)
{
    hipStream_t stream;
    int r = HIP_CALL(hip, ret_fault, StreamCreateWithFlags, (&stream, hipStreamNonBlocking));
    if (r < 0)
        return r;
    hip->reader.stream = stream;
    for (unsigned i = 0; i < 2; i++) {
        hipEvent_t event;
        r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&event, hipEventBlockingSync | hipEventDisableTiming));
        if (r < 0)
            return r;
        hip->reader.filled[i] = event;
    }
    void *pinned;
    r = HIP_CALL(hip, ret_fault, HostMalloc, (&pinned, 2 * HALF, hipHostMallocDefault));
    if (r == 0)
        hip->reader.pinned = pinned;
    return r;
}

void hip_reader_drop(struct hip_device *hip)
{
    if (hip->reader.stream)
        (void)!hipStreamDestroy(hip->reader.stream);
    for (unsigned i = 0; i < 2; i++)
        if (hip->reader.filled[i])
            (void)!hipEventDestroy(hip->reader.filled[i]);
    if (hip->reader.pinned)
        (void)!hipHostFree(hip->reader.pinned);
}

static int fill_half(struct hip_device *hip, unsigned half, const uint8_t *src, size_t n,
                     struct device_fault *ret_fault)
{
    int r = HIP_CALL(hip, ret_fault, MemcpyAsync,
                     (hip->reader.pinned + half * HALF, src, n, hipMemcpyDeviceToHost, hip->reader.stream));
    return r < 0 ? r : HIP_CALL(hip, ret_fault, EventRecord, (hip->reader.filled[half], hip->reader.stream));
}

/* With reader.lock held. After an error, copies may still be running. */
static int read_through(struct hip_device *hip, const uint8_t *src, uint8_t *dst, size_t size,
                        struct device_fault *ret_fault)
{
    size_t n = min_u64(size, HALF);
    int r = fill_half(hip, 0, src, n, ret_fault);
    for (unsigned half = 0; r == 0 && n > 0; half ^= 1) {
        const size_t left = size - n, next = min_u64(left, HALF);
        if (next > 0)
            r = fill_half(hip, half ^ 1, src + n, next, ret_fault);
        if (r == 0)
            r = HIP_CALL(hip, ret_fault, EventSynchronize, (hip->reader.filled[half]));
        if (r == 0)
            memcpy(dst, hip->reader.pinned + half * HALF, n);
        src += n;
        dst += n;
        size -= n;
        n = next;
    }
    return r;
}

/* After a copy failed with `error`. The next reader must not get bytes of this read, and the arena may be freed next:
 * so waits for the copies. */
static int settle(struct hip_device *hip, int error, struct device_fault *ret_fault)
{
    if (hipStreamSynchronize(hip->reader.stream) == hipSuccess)
        return error;
    hip_lose(hip, ret_fault);
    return -ENODEV;
}

/* With reader.lock held. After an error, the copy may still be running. */
static int save_step(struct hip_device *hip, const uint8_t *src, uint8_t *dst, size_t n, struct device_fault *ret_fault)
{
    int r = HIP_CALL(hip, ret_fault, MemcpyAsync, (dst, src, n, hipMemcpyDeviceToHost, hip->reader.stream));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, EventRecord, (hip->reader.filled[0], hip->reader.stream));
    return r < 0 ? r : HIP_CALL(hip, ret_fault, EventSynchronize, (hip->reader.filled[0]));
}

int hip_arena_save(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault)
{
    assert(offset <= arena->memory.bytes && size <= arena->memory.bytes - offset);
    struct hip_device *hip = arena->hip;
    const uint8_t *src = (const uint8_t *)arena->memory.base + offset;
    int r = hip_enter(hip, ret_fault);
    for (size_t at = 0, n; r == 0 && at < size; at += n) {
        n = min_u64(size - at, SAVE_STEP);
        pthread_mutex_lock(&hip->reader.lock);
        r = save_step(hip, src + at, (uint8_t *)dst + at, n, ret_fault);
        if (r < 0)
            r = settle(hip, r, ret_fault);
        pthread_mutex_unlock(&hip->reader.lock);
    }
    return r;
}

int hip_arena_read(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault)
{
    assert(offset <= arena->memory.bytes && size <= arena->memory.bytes - offset);
    struct hip_device *hip = arena->hip;
    int r = hip_enter(hip, ret_fault);
    if (r < 0 || size == 0)
        return r;
    pthread_mutex_lock(&hip->reader.lock);
    r = read_through(hip, (const uint8_t *)arena->memory.base + offset, dst, size, ret_fault);
    if (r < 0)
        r = settle(hip, r, ret_fault);
    pthread_mutex_unlock(&hip->reader.lock);
    return r;
}
