#include "daemon/memory/placement.h"

/* What a load could get there now, as far as is known. */
static uint64_t room(const struct device *device)
{
    const uint64_t available = device_available(device);
    return available < device->free ? available : device->free;
}

struct device *placement_roomiest(const struct device_set *set)
{
    struct device *best = NULL;
    for (size_t i = 0; i < set->n; i++) {
        struct device *device = set->devices[i];
        if (!device->failed && (!best || room(device) > room(best)))
            best = device;
    }
    return best;
}

/* A plan that was cut for one, or would be, can be filled on the other. */
static bool alike(struct device *device, struct device *first, const struct plan *plan)
{
    const bool by_cpu = plan->chunks ? !plan->verbatim : !plan_decoded_by(plan, first);
    return device == first || (device->slot_bytes == first->slot_bytes && device->part_bytes == first->part_bytes &&
                               device->granule == first->granule && (by_cpu || plan_decoded_by(plan, device)));
}

/* 2: it fits, 1: it would if others were evicted, or will when they are gone, 0: it does not. */
static int fits(const struct residency *residency, const struct device *device, uint64_t bytes)
{
    if (bytes <= room(device))
        return 2;
    return bytes <=
           device_available(device) + residency_evictable(residency, device) + residency_departing(residency, device);
}

struct device *placement_choose(const struct residency *residency, const struct device_set *set, struct device *first,
                                const struct plan *plan)
{
    struct device *best = NULL;
    int best_fits = 0;
    for (size_t i = 0; i < set->n; i++) {
        struct device *device = set->devices[i];
        if (device->failed || !alike(device, first, plan))
            continue;
        const int now = fits(residency, device, plan->arena_bytes);
        if (!best || now > best_fits || (now == best_fits && room(device) > room(best))) {
            best = device;
            best_fits = now;
        }
    }
    return best ? best : first;
}
