/* Finds and opens the devices of this machine. GPU modules are shared objects, loaded if they are installed; the host
 * is built in.
 *
 * Loop thread, at start; may block. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/options.h"

/* Opens what `options` asks for, and adds it to the devices: GPUs first, the host always, last. A module that is not
 * there, or finds no device, is an error only if it was asked for by name. Logs what went wrong. 0 or a negative errno.
 */
int modules_open(struct devices *devices, const struct options *options, unsigned workers);
