/* Functions of a device's driver that only the arenas which are kept need (spare.c). They may not return, as those of
 * device.h. Once the device counts as hung nothing is done. Worker. */
#pragma once

#include "daemon/device/device.h"

void driver_arena_free(struct device *device, struct arena *arena);

/* Or -ENODEV. */
int driver_arena_reuse(struct device *device, struct arena *arena, uint64_t bytes, const struct extent *gaps,
                       size_t n_gaps);
