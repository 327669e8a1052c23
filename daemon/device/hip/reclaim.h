/* Takes memory of the device for arenas and frees it; and has the driver reclaim freed memory before the next load.
 *
 * A driver clears freed memory in the background, and finishes that work in the next allocation, which then takes
 * longer. So that no load pays for this, a small allocation is made when much was freed and the device has had nothing
 * to do for a while. The submitter (queue.h) does that, because it knows
 * when there is nothing to do. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Worker. Allocates memory of the kind that the device exports: an allocation that is mapped and can be exported as a
 * descriptor (EXPORT_FD), or a plain one, of which `handle` is not set. The device is current (hip_enter()). `bytes` is
 * a multiple of the device's granule. -ENOMEM if there is not so much. hip_memory_release() frees it. */
int hip_memory_take(struct hip_device *hip, uint64_t bytes, struct hip_share *ret, struct device_fault *ret_fault);

/* Worker. Frees memory; the device is current and does not use it any more. An error is ignored: the driver frees the
 * memory of a lost device when the process ends. */
void hip_memory_release(struct hip_device *hip, struct hip_share *memory);

/* Submitter, hip->lock held: the device got work, so what is to be reclaimed has to wait again. */
void hip_reclaim_postpone(struct hip_device *hip);

/* Submitter, hip->lock held: reclaims if it is time to. Releases the lock while it does, and holds it again when it
 * returns. hip->reclaim.due_ns says when to call this next; 0: when that changes. An error is ignored: the next call
 * that needs the device finds it. */
void hip_reclaim_if_due(struct hip_device *hip);
