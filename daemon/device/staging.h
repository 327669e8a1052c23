/* The staging slots of a device. They are made once and kept as long as the daemon runs.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"

#include <stddef.h>

struct staging;

/* Makes as many slots as the device asks for. Returns 0, or a negative errno and a fault. */
int staging_new(struct device *device, struct staging **ret, struct device_fault *ret_fault);

/* All slots were given back. NULL is fine. */
void staging_free(struct staging *staging);

/* A free slot; the one that was used last, because its memory is in the cache. NULL: none is free. */
struct slot *staging_take(struct staging *staging);

void staging_give(struct staging *staging, struct slot *slot);

/* How many slots there are, free or not. */
size_t staging_slots(const struct staging *staging);
