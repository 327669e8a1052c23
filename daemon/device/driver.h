/* Calls of a device's driver, which may not return. Worker. */
#pragma once

#include "daemon/device/device.h"

#include <stdint.h>

/* On the stack of the thread that makes it. */
struct device_call {
    struct device_call *next, **link;
    uint64_t since; /* uv_hrtime() */
};

/* Before and after calls, which may be nested: while they are under way device_hangs() knows of them. -ENODEV: the
 * device counts as hung, and its driver is not to be called any more. */
int device_call_begin(struct device *device, struct device_call *call, struct device_fault *ret_fault);
void device_call_end(struct device *device, struct device_call *call);
