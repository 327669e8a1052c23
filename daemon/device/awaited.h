/* GPUs whose drivers have not started yet. A device that stands in for one of them is what models that were kept on
 * that GPU have as their device meanwhile: it has the descriptors of their memory, which clients can be given, and does
 * nothing else. Nothing is put into its arenas, nothing is read from them, and it is in no struct devices.
 *
 * Loop thread, but for the operations that device.h gives to workers. */
#pragma once

#include "daemon/device/device.h"

/* What is known of such a GPU, from before the restart. As in struct device; texts that are too long are cut. */
struct awaited_gpu {
    const char *id, *kind, *name, *uuid, *pci;
    uint64_t total, budget, granule, link;
};

struct awaited_gpus {
    struct device *devices[DEVICES_MAX];
    size_t n;
};

/* The device that stands in for the GPU: the same one for the same GPU. It lives until awaited_close(). NULL: no
 * memory, or too many. */
struct device *awaited_get(struct awaited_gpus *gpus, const struct awaited_gpu *gpu);

/* Whether the device only stands in for one. */
bool device_is_awaited(const struct device *device);

/* Frees them. Their arenas were freed. */
void awaited_close(struct awaited_gpus *gpus);

/* Whether both are the same device: a GPU may have another number after a restart, and its UUID tells that it is the
 * same one. */
bool device_same(const struct device *device, const char *kind, const char *uuid, const char *pci, const char *id);
