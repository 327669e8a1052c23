/* Transfers on their way through the device: two queues and two threads for each device.
 *
 *   hip_put() ─▶ waiting ─▶ submitter: hip_submit() ─▶ running ─▶ finisher: waits for the last event ─▶ done()
 *
 * The submitter gives work to the device and the finisher waits for the device, so that neither delays the other. From
 * hip_put() until done() the slot, its scratch memory and its events belong to the transfer. done() is called when the
 * device no longer uses them, with an error too. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Loop, once, when the device is opened, as its last part: starts the threads. Returns 0 or a negative errno; then
 * hip_queue_stop() stops what was started. */
int hip_queue_start(struct hip_device *hip, struct device_fault *ret_fault);

/* Loop, once, at the end. All transfers are done. Stops the threads that were started, which may be none. */
void hip_queue_stop(struct hip_device *hip);

/* Loop or worker: device_ops.put. Does not block. The finisher calls transfer->done, exactly once. */
void hip_put(struct device *device, struct transfer *transfer);
