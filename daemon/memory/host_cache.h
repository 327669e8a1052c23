/* Copies in host memory of models that a GPU has no room for: how much memory they have, and which of them go.
 *
 * A model that has a copy is MODEL_CACHED, or becomes that: save.h makes the copy. Its bytes are in `used` from the
 * moment when there was room for it until host_cache_drop().
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/memory/host_pool.h"
#include "daemon/model/registry.h"

#include <stdbool.h>
#include <stdint.h>

struct events;

struct host_cache {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct events *events;
    uint64_t size;          /* the most bytes */
    uint64_t used;          /* its ledger: bytes that are in use */
    bool lock_memory;       /* it is locked */
    struct host_pool *pool; /* pinned memory for all of them; NULL: none */
};

/* Adds to the ledger, or takes from it. */
void host_cache_count(struct host_cache *cache, uint64_t more, uint64_t less);

/* Notes in the host's `cached` how much memory the copies have. host_cache_count() does it by itself; memory may have
 * been pinned since. */
void host_cache_note(const struct host_cache *cache);

/* Begins to pin the memory. The devices are open. */
void host_cache_pin(struct host_cache *cache);

/* The devices will be closed next: lets go of what was registered with them. */
void host_cache_unpin(struct host_cache *cache);

/* Makes room for the copy of a model that is evicted from the device: drops the models that were used the longest ago.
 * Returns whether there is room; the caller then adds the bytes to `used`. *ret_room: pinned memory, which is taken;
 * NULL: the copy is ordinary memory. */
bool host_cache_make_room(struct host_cache *cache, const struct device *device, uint64_t bytes, void **ret_room);

/* Frees the model's copy, if there is one. */
void host_cache_drop(struct host_cache *cache, struct model *model);

/* Frees a cached model's copy and removes the model from the registry. */
void host_cache_forget(struct host_cache *cache, struct model *model);
