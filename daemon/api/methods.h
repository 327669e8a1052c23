/* The methods of the interface: finds the one that a call names, reads its parameters, and answers.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/call.h"

/* Answers a call, now or later. `context` is a struct api. */
void methods_dispatch(struct call *call, void *context);
