/* Whether a load fits, and which models have to go for it: takes the snapshot of registry and ledgers that room.h
 * decides on. The one decision for Load and for Plan; it changes nothing.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/memory/room.h"
#include "daemon/model/registry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a load wants, or would want. */
struct admission_want {
    struct device *device;
    const struct device *host;
    uint64_t bytes; /* of the device's memory */
    uint64_t due;   /* of the host's memory, for what the daemon itself keeps of the model: registry_due() */
    bool charged;   /* `due` is in the host's ledger already */
    uint64_t ahead; /* bytes of the device that loads which came earlier wait for */
};

/* Which models would have to go so that it fits. Returns 0 and an array of *ret_n models, which the caller frees;
 * -EAGAIN: enough memory is on its way back, together with what may be evicted; -ENOSPC: it does not fit even then;
 * -EDQUOT: `due` alone does not fit into the host's memory; -ENOMEM. *ret_shortage is set in any case: of the device,
 * or with -EDQUOT of the host. */
int admission_choose(const struct registry *registry, const struct admission_want *want, struct model ***ret,
                     size_t *ret_n, struct room_shortage *ret_shortage);

/* Which models have to go for `bytes` of the device's memory, of which the ledger has `charged` already. On success
 * adds them to the array, which has room for all models. Returns what room_choose() does. */
int admission_victims(const struct registry *registry, const struct device *device, uint64_t bytes, uint64_t charged,
                      uint64_t ahead, struct model **models, size_t *n, struct room_shortage *ret_shortage);

/* Bytes of the device's memory that evictions could free. */
uint64_t admission_evictable(const struct registry *registry, const struct device *device);

/* The model may be evicted: it is not in use, and not pinned. */
bool admission_may_go(const struct model *model);
