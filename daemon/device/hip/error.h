/* What a runtime call returned, as an errno and a fault; and whether the device is lost.
 *
 * A device is lost at the first error that it does not recover from, and stays lost. All functions that need the device
 * then return -ENODEV with the fault of that first error.
 *
 * Any thread. The functions may block: to classify an error they may ask the device. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Turns `result`, which `call` returned, into 0 or a negative errno, and fills the fault (which may be NULL):
 * -ENOMEM, -ENODEV for an error that the device does not recover from, -EIO for others. -ENODEV marks `hip` as lost.
 * Where the code alone does not tell, the device is asked whether it still works. `hip` may be NULL: then it is not
 * asked, and nothing is marked. */
int hip_result(struct hip_device *hip, hipError_t result, const char *call, struct device_fault *ret_fault);

/* hip_result() of a call, with the call's own name: HIP_CALL(hip, fault, Malloc, (&memory, bytes)). */
#define HIP_CALL(device, fault, call, args) hip_result(device, hip##call args, HIP_NAME(call), fault)

/* Marks the device as lost, with this fault, unless it is lost already. */
void hip_lose(struct hip_device *hip, const struct device_fault *fault);

/* Makes the device the calling thread's current one. Returns 0, or -ENODEV at once if it is lost, with the first fault;
 * or what hip_result() says. Every function of device_ops that can fail begins with it. */
int hip_enter(struct hip_device *hip, struct device_fault *ret_fault);
