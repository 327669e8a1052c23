/* Opens the GPUs on a thread of its own, while the loop answers clients: drivers take long to start.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/options.h"

/* Called once, when all are open and in front of the other devices. status: 0; or a negative errno, and it is logged
 * why the GPUs that were asked for cannot be used. */
typedef void opening_fn(void *context, int status);

/* Begins. A job of the core until `opened` has returned, so the daemon does not end before. `options` live as long. 0;
 * or a negative errno, and `opened` is never called. */
int opening_begin(struct core *core, struct devices *devices, const struct options *options, opening_fn *opened,
                  void *context);
