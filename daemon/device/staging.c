#include "daemon/device/staging.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct staging {
    struct device *device;
    size_t n_slots;
    struct slot *slots;
    size_t n_free;
    struct slot **free; /* a stack */
};

int staging_new(struct device *device, struct staging **ret, struct device_fault *ret_fault)
{
    const size_t n = device->n_slots;
    assert(n > 0);
    struct staging *staging = calloc(1, sizeof(*staging));
    if (!staging)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, NULL);
    staging->device = device;
    staging->slots = calloc(n, sizeof(*staging->slots));
    staging->free = calloc(n, sizeof(struct slot *));
    if (!staging->slots || !staging->free) {
        staging_free(staging);
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, NULL);
    }
    for (size_t i = 0; i < n; i++) {
        struct slot *slot = &staging->slots[i];
        slot->device = device;
        slot->index = (unsigned)i;
        slot->size = device->slot_bytes;
        int r = device->ops->slot_init(device, slot, ret_fault);
        if (r < 0) {
            staging_free(staging);
            return r;
        }
        staging->n_slots++;
        staging->free[staging->n_free++] = slot;
    }
    *ret = staging;
    return 0;
}

void staging_free(struct staging *staging)
{
    if (!staging)
        return;
    assert(staging->n_free == staging->n_slots);
    for (size_t i = 0; i < staging->n_slots; i++)
        staging->device->ops->slot_fini(staging->device, &staging->slots[i]);
    free(staging->slots);
    free(staging->free);
    free(staging);
}

struct slot *staging_take(struct staging *staging)
{
    return staging->n_free > 0 ? staging->free[--staging->n_free] : NULL;
}

void staging_give(struct staging *staging, struct slot *slot)
{
    assert(staging->n_free < staging->n_slots);
    staging->free[staging->n_free++] = slot;
}

size_t staging_slots(const struct staging *staging)
{
    return staging->n_slots;
}
