/* Why a file is refused, and how long a header may be. */
#pragma once

#include <stdint.h>

/* The most bytes that a model's headers may have: everything before the tensor data, in all its files together. Headers
 * of real models are much smaller. */
#define GGUF_HEADER_MAX (128ull << 20)

/* reason: one sentence. offset: of the faulty field, from the start of the file. */
struct gguf_fault {
    char reason[160];
    uint64_t offset;
};
