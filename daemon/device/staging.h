/* The staging slots of a device. They are made once and kept as long as the daemon runs.
 *
 * Loop thread only, but for staging_make(). */
#pragma once

#include "daemon/device/device.h"

#include <stddef.h>

struct staging;

/* Makes as many slots as the device asks for. Returns 0, or a negative errno and a fault. */
int staging_new(struct device *device, struct staging **ret, struct device_fault *ret_fault);

/* All slots must have been given back. NULL is allowed. */
void staging_free(struct staging *staging);

/* A free slot; the one that was used last, because its memory is in the cache. NULL: none is free. */
struct slot *staging_take(struct staging *staging);

void staging_give(struct staging *staging, struct slot *slot);

/* How many slots there are, free or not; and how many there can be: their indexes are less. */
size_t staging_slots(const struct staging *staging);
size_t staging_slots_most(const struct staging *staging);

/* A load whose files do not answer blocks its slots: other loads cannot use them. So more slots are made, one at a
 * time, up to STAGING_SPARES for each slot that the device asks for. They stay. Returns how many more are needed if `n`
 * are blocked now. */
#define STAGING_SPARES 8u
size_t staging_lacks(const struct staging *staging, size_t n);

/* worker. Makes the next slot, which no other function sees before staging_add(). Returns a negative errno, or 0. */
int staging_make(struct staging *staging, struct device_fault *ret_fault);

/* loop. The slot that was made is free. */
void staging_add(struct staging *staging);
