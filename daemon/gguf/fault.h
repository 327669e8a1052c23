/* Why a file is refused, and how long a header may be. */
#pragma once

#include <stdint.h>

/* Bytes before the tensor data, in all files of a model together. No real model comes near. */
#define GGUF_HEADER_MAX (128ull << 20)

/* A sentence, and the offset of the faulty field in the file. */
struct gguf_fault {
    char reason[160];
    uint64_t offset;
};
