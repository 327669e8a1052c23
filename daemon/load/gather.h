/* Reads tensors of which memory has not all blocks, or has them in another order than the file (struct gather).
 *
 * Worker thread. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/model/plan.h"
#include "daemon/model/source.h"

#include <stddef.h>
#include <stdint.h>

/* How many values overflowed, and how long reading and decoding took. */
struct fill_count {
    uint64_t overflows;
    uint64_t read_ns;
    uint64_t decode_ns;
};

/* Reads one piece of a packed plan to `dst`, and decodes it if the plan says so. Adds to *count. Errors are those of
 * source_read(). */
int gather_read(const struct source *source, const struct plan *plan, size_t shard, size_t piece, uint8_t *dst,
                struct fill_count *count, struct device_fault *ret_fault);
