#include "daemon/device/spare.h"

#include "daemon/base/log.h"
#include "daemon/base/worker.h"
#include "daemon/device/driver.h"

#include <inttypes.h>
#include <stdlib.h>

struct spare {
    struct spare *next;
    struct arena *arena;
    uint64_t bytes;
    bool own;
    struct spare_origin origin;
    spare_gone_fn gone;
    void *context;
};

/* Bytes that an arena takes of the driver. */
static uint64_t rounded(const struct device *device, uint64_t bytes)
{
    const uint64_t granule = device->granule ? device->granule : 1;
    uint64_t sum;
    return __builtin_add_overflow(bytes, granule - 1, &sum) ? UINT64_MAX : sum - sum % granule;
}

uint64_t device_spare_bytes(const struct device *device)
{
    return atomic_load(&device->spares.bytes);
}

/* Whoever has the lock may wait for the driver. */
static void spares_lock(struct device *device)
{
    worker_device_begin();
    pthread_mutex_lock(&device->spares.lock);
    worker_device_end();
}

/* Whether models may have `bytes` more beside what they have and what is kept. */
static bool in_budget(const struct device *device, uint64_t bytes)
{
    uint64_t sum;
    return !__builtin_add_overflow(atomic_load(&device->taken) + device_spare_bytes(device), bytes, &sum) &&
           sum <= device->budget;
}

/* Whether the driver has so much free. */
static bool driver_has(struct device *device, uint64_t bytes)
{
    uint64_t available;
    struct device_fault unused;
    return device_memory_free(device, &available, &unused) == 0 && available >= bytes;
}

bool device_spare(struct device *device, struct arena *arena, uint64_t bytes, bool own,
                  const struct spare_origin *origin, spare_gone_fn gone, void *context)
{
    const uint64_t takes = rounded(device, bytes);
    if (device_is_host(device) || !driver_has(device, takes))
        return false;
    struct spare *spare = malloc(sizeof(*spare));
    if (!spare)
        return false;
    *spare =
        (struct spare){.arena = arena, .bytes = bytes, .own = own, .origin = *origin, .gone = gone, .context = context};
    device_move_begin(device);
    spares_lock(device);
    /* `taken` has the arena's bytes still. */
    const bool fits = in_budget(device, 0);
    if (fits) {
        spare->next = device->spares.first;
        device->spares.first = spare;
        atomic_fetch_add(&device->spares.bytes, takes);
        atomic_fetch_sub(&device->taken, bytes);
    }
    pthread_mutex_unlock(&device->spares.lock);
    device_move_end(device);
    if (!fits)
        free(spare);
    return fits;
}

/* Frees a spare that is in no list any more. The lock is held. */
static void release(struct device *device, struct spare *spare)
{
    uint64_t before = 0, after = 0;
    struct device_fault unused;
    struct device_call call;
    const bool told = spare->gone && device_memory_free(device, &before, &unused) == 0;
    device_move_begin(device);
    if (device_call_begin(device, &call, &unused) == 0) { /* else the driver keeps it */
        device->ops->arena_free(spare->arena);
        device_call_end(device, &call);
    }
    atomic_fetch_sub(&device->spares.bytes, rounded(device, spare->bytes));
    device_move_end(device);
    if (told && device_memory_free(device, &after, &unused) == 0)
        spare->gone(spare->context, device, &spare->origin, spare->bytes, before, after);
    free(spare);
}

static void release_all(struct device *device)
{
    struct spare *spare;
    while ((spare = device->spares.first)) {
        device->spares.first = spare->next;
        release(device, spare);
    }
}

void device_spares_release(struct device *device)
{
    spares_lock(device);
    release_all(device);
    pthread_mutex_unlock(&device->spares.lock);
}

void device_spares_drop(struct device *device)
{
    for (struct spare *spare = device->spares.first; spare; spare = spare->next)
        spare->gone = NULL;
    release_all(device);
}

/* Takes an arena of the same size out of the list. NULL: there is none that may be used again. */
static struct spare *find(struct device *device, uint64_t bytes)
{
    for (struct spare **at = &device->spares.first; *at; at = &(*at)->next) {
        struct spare *spare = *at;
        if (!spare->own || rounded(device, spare->bytes) != rounded(device, bytes))
            continue;
        *at = spare->next;
        return spare;
    }
    return NULL;
}

/* With the lock held, in a call of the driver. */
static bool take(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps, struct arena **ret)
{
    struct device_fault unused;
    struct spare *spare = device->ops->arena_reuse ? find(device, bytes) : NULL;
    if (!spare)
        return false;
    if (device->ops->arena_reuse(spare->arena, bytes, gaps, n_gaps, &unused) < 0) {
        release(device, spare);
        return false;
    }
    log_debug("device=%s: an arena of %" PRIu64 " bytes is used again", device->id, spare->bytes);
    *ret = spare->arena;
    atomic_fetch_sub(&device->spares.bytes, rounded(device, spare->bytes));
    free(spare);
    return true;
}

bool device_spare_take(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                       struct arena **ret)
{
    if (device_spare_bytes(device) == 0)
        return false;
    spares_lock(device);
    const bool taken = take(device, bytes, gaps, n_gaps, ret);
    if (!taken && (!in_budget(device, bytes) || !driver_has(device, rounded(device, bytes))))
        release_all(device);
    pthread_mutex_unlock(&device->spares.lock);
    return taken;
}
