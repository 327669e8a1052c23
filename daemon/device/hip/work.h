/* What a transfer has the device do: copies from its slot to the arena or to scratch memory, and kernels that decode.
 */
#pragma once

#include "daemon/device/hip/hip.h"

/* Submitter only. Puts a slot's copies and kernels on the streams and sets slot->kernels, slot->stream and
 * transfer->stream. Does not wait for them. Returns 0 or a negative errno with transfer->fault set; the device may
 * have begun a part of the work then, so the caller waits for the streams. */
int hip_submit(struct hip_device *hip, struct slot_hip *slot);

/* Submitter or finisher: whoever has the slot. How many values overflowed in the slot's kernels since the last call.
 * None of its kernels is running. May block. */
int hip_overflows_take(struct hip_device *hip, struct slot_hip *slot, uint64_t *ret, struct device_fault *ret_fault);

/* Bytes of scratch memory that a slot of `slot_bytes` needs, whatever pieces it holds. Any thread. */
size_t hip_scratch_bytes(size_t slot_bytes);
