/* Device memory that other processes map through a descriptor: what the daemon, which makes it, and clients, which
 * import it, both need. It is compiled into the modules of both.
 *
 * The memory lives as long as a descriptor, an allocation's handle or a mapping of it does, in whatever process.
 * Whoever has none of these cannot reach it: there is nothing to guess, and no namespace that both have to be in.
 *
 * A descriptor gives the right to map the memory in either way. Clients map it read-only, so that a kernel with a bug
 * cannot change it. No runtime makes a descriptor that permits nothing else.
 *
 * Any thread; the device is current on it. Functions return what the runtime returned. After an error `ret_call` names
 * the call that failed (static text), and nothing is left behind. */
#pragma once

#include "kernels/hip.h"

#include <stdint.h>

/* An allocation of this process, or one that it imported. */
struct hip_share {
    hipMemGenericAllocationHandle_t handle;
    void *base;     /* where it is mapped */
    uint64_t bytes; /* a multiple of the granule */
};

/* What such an allocation is asked for with. */
hipMemAllocationProp hip_share_properties(int device);

/* To what such an allocation's size is rounded up: 2 MiB, or more if the device wants that; a power of two. Daemon and
 * clients compute it each for itself, because an allocation is always mapped as a whole. An error says that the device
 * has no such memory. */
hipError_t hip_share_granule(int device, uint64_t *ret, const char **ret_call);

/* Maps an allocation of `bytes` bytes. Takes the handle, and releases it after an error. hip_share_drop() unmaps it. */
hipError_t hip_share_map(int device, hipMemGenericAllocationHandle_t handle, uint64_t bytes, hipMemAccessFlags access,
                         struct hip_share *ret, const char **ret_call);

/* Maps memory that another process has exported: read-only, or to be written to by the client that makes a model of it.
 * The descriptor is not needed any more afterwards; it stays the caller's. An error if it is none of such memory, or if
 * there are fewer than `bytes` of it. hip_share_drop() unmaps it. */
hipError_t hip_share_import(int device, int fd, uint64_t bytes, hipMemAccessFlags access, struct hip_share *ret,
                            const char **ret_call);

/* Unmaps the memory and gives it up. The device does not use it any more. Errors are ignored: all that can be freed is.
 */
void hip_share_drop(struct hip_share *share);
