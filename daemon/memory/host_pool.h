/* Host memory that GPUs can copy to and from by themselves, for the copies of evicted models: the whole of
 * --host-cache, registered with the driver once (--host-cache-pinned). Then no processor copies, neither when a model
 * is saved nor when it comes back.
 *
 * It is made in the background after the start. Until it is there, evicted models are not saved. If it cannot be made,
 * the copies are ordinary memory, as without the option.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"

#include <stdbool.h>
#include <stdint.h>

enum host_pool_state {
    HOST_POOL_NONE, /* not asked for, or it could not be made */
    HOST_POOL_MAKING,
    HOST_POOL_READY,
};

struct host_pool;

/* Begins to make a pool of so many bytes. NULL: no memory for that, or no GPU can register host memory; logged. */
struct host_pool *host_pool_new(struct core *core, struct devices *devices, uint64_t bytes);

/* The copies were given back, no job is under way, and the devices are open still. NULL is fine. */
void host_pool_free(struct host_pool *pool);

/* NULL is fine: HOST_POOL_NONE. */
enum host_pool_state host_pool_state(const struct host_pool *pool);

/* Whether a device can copy to and from the pool: it is ready, and the device is of the kind that it was registered
 * for. NULL is fine. */
bool host_pool_serves(const struct host_pool *pool, const struct device *device);

/* A run of so many bytes, more than 0. NULL: no run is long enough. */
void *host_pool_take(struct host_pool *pool, uint64_t bytes);

/* Whether host_pool_take() returned this. NULL is fine: false. */
bool host_pool_has(const struct host_pool *pool, const void *memory);

void host_pool_give(struct host_pool *pool, void *memory);
