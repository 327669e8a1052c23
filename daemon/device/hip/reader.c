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

void hip_reader_init(struct hip_device *hip)
{
    for (unsigned i = 0; i < HIP_READERS; i++)
        pthread_mutex_init(&hip->readers[i].lock, NULL);
}

static int make(struct hip_device *hip, struct hip_reader *reader, struct device_fault *ret_fault)
{
    hipStream_t stream;
    int r = HIP_CALL(hip, ret_fault, StreamCreateWithFlags, (&stream, hipStreamNonBlocking));
    if (r < 0)
        return r;
    reader->stream = stream;
    for (unsigned i = 0; i < 2; i++) {
        hipEvent_t event;
        r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&event, hipEventBlockingSync | hipEventDisableTiming));
        if (r < 0)
            return r;
        reader->filled[i] = event;
    }
    void *pinned;
    r = HIP_CALL(hip, ret_fault, HostMalloc, (&pinned, 2 * HALF, hipHostMallocDefault));
    if (r == 0)
        reader->pinned = pinned;
    return r;
}

int hip_reader_make(struct hip_device *hip, struct device_fault *ret_fault)
{
    return make(hip, &hip->readers[0], ret_fault);
}

void hip_reader_drop(struct hip_device *hip)
{
    for (unsigned i = 0; i < HIP_READERS; i++) {
        struct hip_reader *reader = &hip->readers[i];
        if (reader->stream)
            (void)!hipStreamDestroy(reader->stream);
        for (unsigned half = 0; half < 2; half++)
            if (reader->filled[half])
                (void)!hipEventDestroy(reader->filled[half]);
        if (reader->pinned)
            (void)!hipHostFree(reader->pinned);
        pthread_mutex_destroy(&reader->lock);
    }
}

/* A reader that is free, with its lock held; if none is, waits for the first. */
static struct hip_reader *take(struct hip_device *hip)
{
    struct device_fault unused;
    for (unsigned i = 0; i < HIP_READERS; i++) {
        struct hip_reader *reader = &hip->readers[i];
        if (pthread_mutex_trylock(&reader->lock) != 0)
            continue;
        if (!reader->pinned && !reader->unusable)
            reader->unusable = make(hip, reader, &unused) < 0;
        if (!reader->unusable)
            return reader;
        pthread_mutex_unlock(&reader->lock);
    }
    pthread_mutex_lock(&hip->readers[0].lock);
    return &hip->readers[0];
}

static int fill_half(struct hip_device *hip, struct hip_reader *reader, unsigned half, const uint8_t *src, size_t n,
                     struct device_fault *ret_fault)
{
    int r = HIP_CALL(hip, ret_fault, MemcpyAsync,
                     (reader->pinned + half * HALF, src, n, hipMemcpyDeviceToHost, reader->stream));
    return r < 0 ? r : HIP_CALL(hip, ret_fault, EventRecord, (reader->filled[half], reader->stream));
}

/* With the reader's lock held. After an error, copies may still be running. */
static int read_through(struct hip_device *hip, struct hip_reader *reader, const uint8_t *src, uint8_t *dst,
                        size_t size, struct device_fault *ret_fault)
{
    size_t n = min_u64(size, HALF);
    int r = fill_half(hip, reader, 0, src, n, ret_fault);
    for (unsigned half = 0; r == 0 && n > 0; half ^= 1) {
        const size_t left = size - n, next = min_u64(left, HALF);
        if (next > 0)
            r = fill_half(hip, reader, half ^ 1, src + n, next, ret_fault);
        if (r == 0)
            r = HIP_CALL(hip, ret_fault, EventSynchronize, (reader->filled[half]));
        if (r == 0)
            memcpy(dst, reader->pinned + half * HALF, n);
        src += n;
        dst += n;
        size -= n;
        n = next;
    }
    return r;
}

/* After a copy failed with `error`. The next reader must not get bytes of this read, and the arena may be freed next:
 * so waits for the copies. */
static int settle(struct hip_device *hip, struct hip_reader *reader, int error, struct device_fault *ret_fault)
{
    if (hipStreamSynchronize(reader->stream) == hipSuccess)
        return error;
    hip_lose(hip, ret_fault);
    return -ENODEV;
}

/* With the reader's lock held. After an error, the copy may still be running. */
static int save_step(struct hip_device *hip, struct hip_reader *reader, const uint8_t *src, uint8_t *dst, size_t n,
                     struct device_fault *ret_fault)
{
    int r = HIP_CALL(hip, ret_fault, MemcpyAsync, (dst, src, n, hipMemcpyDeviceToHost, reader->stream));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, EventRecord, (reader->filled[0], reader->stream));
    return r < 0 ? r : HIP_CALL(hip, ret_fault, EventSynchronize, (reader->filled[0]));
}

int hip_arena_save(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault)
{
    assert(offset <= arena->memory.bytes && size <= arena->memory.bytes - offset);
    struct hip_device *hip = arena->hip;
    const uint8_t *src = (const uint8_t *)arena->memory.base + offset;
    int r = hip_enter(hip, ret_fault);
    for (size_t at = 0, n; r == 0 && at < size; at += n) {
        n = min_u64(size - at, SAVE_STEP);
        struct hip_reader *reader = take(hip);
        r = save_step(hip, reader, src + at, (uint8_t *)dst + at, n, ret_fault);
        if (r < 0)
            r = settle(hip, reader, r, ret_fault);
        pthread_mutex_unlock(&reader->lock);
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
    struct hip_reader *reader = take(hip);
    r = read_through(hip, reader, (const uint8_t *)arena->memory.base + offset, dst, size, ret_fault);
    if (r < 0)
        r = settle(hip, reader, r, ret_fault);
    pthread_mutex_unlock(&reader->lock);
    return r;
}
