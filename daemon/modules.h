/* Finds and opens the devices of this machine. GPU modules are shared objects, loaded if they are installed; the host
 * is built in.
 *
 * They may block. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/options.h"

/* Sets what GPU runtimes read from the environment; before there are other threads, which may read it too. */
void modules_prepare(void);

/* Opens the GPUs that `options` asks for, and adds them. A module that is not there, or finds no device, is an error
 * only if it was asked for by name. Logs what went wrong. Any one thread; others leave `devices` alone meanwhile. 0 or
 * a negative errno. */
int modules_open_gpus(struct devices *devices, const struct options *options, unsigned workers);

/* Opens the host's memory, and adds it behind the GPUs. Loop thread, at the start. 0 or a negative errno, logged. */
int modules_open_host(struct devices *devices, const struct options *options, unsigned workers);

/* Whether `options` asks for GPUs. */
bool modules_want_gpus(const struct options *options);
