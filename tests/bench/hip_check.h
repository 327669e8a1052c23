/* Calls of the GPU's runtime in programs that measure: one that fails ends the program. */
#pragma once

#include "kernels/hip.h"

#include <stdio.h>
#include <stdlib.h>

static inline void hip_check(hipError_t error, const char *call)
{
    if (error == hipSuccess)
        return;
    fprintf(stderr, "%s: %s (%d)\n", call, hipGetErrorString(error), (int)error);
    exit(1);
}
#define CHECK(call) hip_check(call, #call)
