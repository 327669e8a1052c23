#include "daemon/memory/device_choice.h"

#include <errno.h>
#include <stdlib.h>

struct device *device_choice_roomiest(const struct device_set *set)
{
    struct device *best = NULL;
    for (size_t i = 0; i < set->n; i++) {
        struct device *device = set->devices[i];
        if (!device->failed && (!best || device_available(device) > device_available(best)))
            best = device;
    }
    return best;
}

/* Whether a plan that is made for `first` can be used for `device` as well. */
static bool alike(struct device *device, struct device *first, const struct plan *plan)
{
    const bool by_cpu = plan->chunks ? !plan->verbatim : !plan_decoded_by(plan, first);
    return device == first || (device->slot_bytes == first->slot_bytes && device->part_bytes == first->part_bytes &&
                               device->granule == first->granule && (by_cpu || plan_decoded_by(plan, device)));
}

/* Bytes of the device that are free for a load. ahead: bytes that earlier loads wait for. */
static uint64_t room(const struct device *device, uint64_t ahead)
{
    const uint64_t limit = device_limit(device);
    const uint64_t promised = device->used + ahead;
    return limit > promised ? limit - promised : 0;
}

/* Returns 2: it fits now; 1: it fits after evictions, or when memory that is being freed is back; 0: it does not
 * fit. */
static int fits(const struct residency *residency, struct device *device, uint64_t bytes, uint64_t ahead)
{
    const struct admission_want want = {
        .device = device, .host = devices_host(residency->devices), .bytes = bytes, .ahead = ahead};
    struct room_shortage unused;
    struct model **victims;
    size_t n;
    int r = admission_choose(residency->registry, &want, &victims, &n, &unused);
    if (r < 0)
        return r == -EAGAIN;
    free(victims);
    return n == 0 ? 2 : 1;
}

struct device *device_choose(const struct residency *residency, const struct device_set *set, struct device *first,
                             const struct plan *plan, const uint64_t *ahead)
{
    struct device *best = NULL;
    int best_fits = 0;
    uint64_t best_room = 0;
    for (size_t i = 0; i < set->n; i++) {
        struct device *device = set->devices[i];
        if (device->failed || !alike(device, first, plan))
            continue;
        const int now = fits(residency, device, plan->arena_bytes, ahead[i]);
        const uint64_t now_room = room(device, ahead[i]);
        if (!best || now > best_fits || (now == best_fits && now_room > best_room)) {
            best = device;
            best_fits = now;
            best_room = now_room;
        }
    }
    return best ? best : first;
}
