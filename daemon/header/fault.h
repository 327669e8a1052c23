/* Why a file is refused. */
#pragma once

#include <stdint.h>

/* reason: one sentence. offset: of the faulty field, from the start of the file. */
struct header_fault {
    char reason[160];
    uint64_t offset;
};
