/* The methods of the interface: finds the one that a call names, reads its parameters, and answers.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/call.h"

/* Whether the call waits until the GPUs' drivers have started: all do but those by which clients attach, take their
 * leases again, and let go. `context` is a struct api. */
bool methods_hold(const struct call *call, void *context);

/* Answers a call, now or later. `context` is a struct api. */
void methods_dispatch(struct call *call, void *context);
