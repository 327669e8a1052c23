/* The kernels that decode blocks on the device: embedded in the module, loaded once for each device. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Loop, once, when the device is opened; blocks. The device is current and has its streams and its word. Loads the
 * kernels into hip->module and hip->kernels, and launches one. If they were not built for this device there are none:
 * that is no error, and device.no_kernels says why. After an error hip_kernels_unload() frees what was loaded. */
int hip_kernels_load(struct hip_device *hip, struct device_fault *ret_fault);

/* Loop, once, at the end. No kernel is running. Frees what was loaded, which may be nothing. */
void hip_kernels_unload(struct hip_device *hip);
