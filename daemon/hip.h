/* Whichever GPU runtime this is compiled against, under HIP's names: ROCm's headers, or CUDA's with daemon/hip_cuda.h.
 */
#pragma once

#if defined(ROCMFORGE_CUDA)
#include "daemon/hip_cuda.h"
#else
#include <hip/hip_runtime_api.h>
#define HIP_KIND       "hip"
#define HIP_NAME(call) "hip" #call
#endif

#include <stddef.h>
#include <stdio.h>

#define HIP_UUID_SIZE 37

/* Writes a UUID as the vendors' tools do: 8-4-4-4-12 hexadecimal digits. Daemon and clients compare these. */
static inline void hip_uuid_text(const hipUUID *uuid, char ret[HIP_UUID_SIZE])
{
    static const int groups[] = {4, 2, 2, 2, 6};
    size_t at = 0, byte = 0;
    for (size_t group = 0; group < sizeof(groups) / sizeof(groups[0]); group++) {
        if (group > 0)
            ret[at++] = '-';
        for (int i = 0; i < groups[group]; i++, byte++, at += 2)
            snprintf(ret + at, 3, "%02x", (unsigned char)uuid->bytes[byte]);
    }
}
