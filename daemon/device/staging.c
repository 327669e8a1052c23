#include "daemon/device/staging.h"

#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct staging {
    struct device *device;
    size_t n_slots, n_most;
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
    const size_t most = n + n * STAGING_SPARES;
    staging->n_most = most;
    staging->slots = calloc(most, sizeof(*staging->slots));
    staging->free = calloc(most, sizeof(struct slot *));
    if (!staging->slots || !staging->free) {
        staging_free(staging);
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, NULL);
    }
    for (size_t i = 0; i < n; i++) {
        int r = staging_make(staging, ret_fault);
        if (r < 0) {
            staging_free(staging);
            return r;
        }
        staging_add(staging);
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

int staging_make(struct staging *staging, struct device_fault *ret_fault)
{
    struct device *device = staging->device;
    struct slot *slot = &staging->slots[staging->n_slots];
    *slot = (struct slot){.device = device, .index = (unsigned)staging->n_slots, .size = device->slot_bytes};
    return device->ops->slot_init(device, slot, ret_fault);
}

void staging_add(struct staging *staging)
{
    staging->free[staging->n_free++] = &staging->slots[staging->n_slots++];
}

size_t staging_lacks(const struct staging *staging, size_t n)
{
    const size_t wanted = staging->device->n_slots + n;
    const size_t most = min_u64(wanted, staging->n_most);
    return most > staging->n_slots ? most - staging->n_slots : 0;
}

size_t staging_slots_most(const struct staging *staging)
{
    return staging->n_most;
}

size_t staging_slots(const struct staging *staging)
{
    return staging->n_slots;
}
