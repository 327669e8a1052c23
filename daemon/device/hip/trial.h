/* Finds out, when a device is opened, how its memory can be exported: what a runtime can do depends on its version, the
 * device and the kernel, and no attribute tells it all.
 *
 * A trial allocation is exported by descriptor, imported again, mapped read-only and read through that mapping. If all
 * of this works, the device exports descriptors (EXPORT_FD). If not, a trial allocation is exported as an IPC handle,
 * which the process that made it cannot open. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Loop, once, when the device is opened; blocks. The device is current. `wish` is what the administrator asks for;
 * `wanted`: bytes of the trial allocation, 0: as many as are needed to be certain.
 *
 * Sets device.export_kind; device.granule, if the device wants larger ones than it has; device.no_descriptors, if
 * descriptors were tried and do not work; and device.exports_leak, if exported memory does not come back when it is
 * freed. Returns an error if memory of this device cannot be exported, or not as `wish` says. */
int hip_export_try(struct hip_device *hip, enum export_wish wish, uint64_t wanted, struct device_fault *ret_fault);
