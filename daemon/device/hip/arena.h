/* Arenas: device memory that models are resident in. Allocated, cleared where nothing is put, exported once, freed.
 *
 * The functions are those of device_ops (daemon/device/device.h) with the same names, which says their threads and
 * errors. An arena belongs to who made it, until hip_arena_free(). */
#pragma once

#include "daemon/device/hip/hip.h"

int hip_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps, struct arena **ret,
                  struct device_fault *ret_fault);
int hip_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret, struct device_export *ret_export,
                    struct device_fault *ret_fault);
int hip_arena_reuse(struct arena *arena, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                    struct device_fault *ret_fault);
void hip_arena_free(struct arena *arena);
int hip_arena_export(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);
int hip_arena_lend(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault);
int hip_arena_seal(struct arena *arena, struct device_fault *ret_fault);
