/* A device's ring of staging slots: made once, kept for the daemon's life.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"

#include <stddef.h>

struct staging;

/* Makes the slots that the device wants. Returns 0 or a negative errno and a fault. */
int staging_new(struct device *device, struct staging **ret, struct device_fault *ret_fault);

/* All slots were given back. NULL is fine. */
void staging_free(struct staging *staging);

/* A free slot, the one used last (its memory is in the cache), or NULL. */
struct slot *staging_take(struct staging *staging);

void staging_give(struct staging *staging, struct slot *slot);

/* How many slots there are, free or not. */
size_t staging_slots(const struct staging *staging);
