/* Decides whether a load fits, and which models must be evicted for it. Takes a snapshot of the registry and the
 * ledgers, and room.h decides from it. Load and Plan use the same decision. Nothing is changed here.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/memory/room.h"
#include "daemon/model/registry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The memory that a load needs. For Plan: that it would need. */
struct admission_want {
    struct device *device;
    const struct device *host;
    uint64_t bytes; /* of the device's memory */
    uint64_t due;   /* of the host's memory, for what the daemon keeps of the model: registry_due() */
    bool charged;   /* `due` is in the host's ledger already */
    uint64_t ahead; /* bytes of the device that earlier loads wait for */
};

/* Chooses the models to evict so that the load fits. Returns 0 and an array of *ret_n models, which the caller frees;
 * -EAGAIN: the load will fit when memory that is being freed is back, if need be after evictions; -ENOSPC: the load
 * does not fit even then; -EDQUOT: `due` alone does not fit into the host's memory; -ENOMEM. *ret_shortage is always
 * set: for the device, or with -EDQUOT for the host. */
int admission_choose(const struct registry *registry, const struct admission_want *want, struct model ***ret,
                     size_t *ret_n, struct room_shortage *ret_shortage);

/* Chooses the models to evict for `bytes` of the device's memory. charged: the part of `bytes` that is in the ledger
 * already. On success adds the models to the array, which must have room for all models. Returns what room_choose()
 * returns. */
int admission_victims(const struct registry *registry, const struct device *device, uint64_t bytes, uint64_t charged,
                      uint64_t ahead, struct model **models, size_t *n, struct room_shortage *ret_shortage);

/* Bytes of the device's memory that evictions could free. */
uint64_t admission_evictable(const struct registry *registry, const struct device *device);

/* Whether the model may be evicted: it is not in use and not pinned. */
bool admission_may_go(const struct model *model);
