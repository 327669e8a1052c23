/* The functions of device.h that call a device's driver and may not return. The daemon's alone: modules have no
 * workers. */
#include "daemon/device/driver.h"

#include "daemon/base/worker.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <uv.h>

/* Held for some instructions. */
static void calls_lock(struct device *device)
{
    while (atomic_flag_test_and_set_explicit(&device->calls_lock, memory_order_acquire))
        sched_yield();
}

static void calls_unlock(struct device *device)
{
    atomic_flag_clear_explicit(&device->calls_lock, memory_order_release);
}

int device_call_begin(struct device *device, struct device_call *call, struct device_fault *ret_fault)
{
    call->link = NULL;
    if (atomic_load(&device->hung))
        return device_fault_set(ret_fault, -ENODEV, "driver", 0, "it does not answer");
    call->since = uv_hrtime();
    calls_lock(device);
    call->next = device->calls;
    call->link = &device->calls;
    if (call->next)
        call->next->link = &call->next;
    device->calls = call;
    calls_unlock(device);
    worker_device_begin();
    return 0;
}

void device_call_end(struct device *device, struct device_call *call)
{
    worker_device_end();
    calls_lock(device);
    assert(call->link); /* it was begun */
    *call->link = call->next;
    if (call->next)
        call->next->link = call->link;
    calls_unlock(device);
}

bool device_hangs(struct device *device, uint64_t begun_before)
{
    bool hangs = false;
    if (atomic_flag_test_and_set_explicit(&device->calls_lock, memory_order_acquire))
        return false; /* the loop does not wait: it asks again soon */
    for (const struct device_call *call = device->calls; call && !hangs; call = call->next)
        hangs = call->since < begun_before;
    calls_unlock(device);
    return hangs;
}

int device_memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->memory_free(device, ret, ret_fault);
    device_call_end(device, &call);
    return r;
}

int device_arena_export(struct device *device, struct arena *arena, struct device_export *ret,
                        struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->arena_export(arena, ret, ret_fault);
    device_call_end(device, &call);
    return r;
}

int device_arena_seal(struct device *device, struct arena *arena, struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->arena_seal(arena, ret_fault);
    device_call_end(device, &call);
    return r;
}

int device_arena_read(struct device *device, struct arena *arena, uint64_t offset, void *dst, size_t size,
                      struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->arena_read(arena, offset, dst, size, ret_fault);
    device_call_end(device, &call);
    return r;
}

int device_arena_lend(struct device *device, struct arena *arena, struct device_export *ret,
                      struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->arena_lend(arena, ret, ret_fault);
    device_call_end(device, &call);
    return r;
}

int device_arena_save(struct device *device, struct arena *arena, uint64_t offset, void *dst, size_t size,
                      struct device_fault *ret_fault)
{
    struct device_call call;
    int r = device_call_begin(device, &call, ret_fault);
    if (r < 0)
        return r;
    r = device->ops->arena_save(arena, offset, dst, size, ret_fault);
    device_call_end(device, &call);
    return r;
}
