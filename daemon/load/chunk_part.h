/* Reads a part of a chunk, and decodes it, to its place in memory that is laid out as the chunk's slot.
 *
 * Worker thread. */
#pragma once

#include "daemon/load/gather.h"
#include "daemon/model/plan.h"
#include "daemon/model/source.h"

#include <stdint.h>

/* Where a file's bytes come from: the file, or memory that has those from `begin` on. */
struct input {
    const struct source *source;
    size_t shard;
    const uint8_t *memory; /* NULL: from the file */
    uint64_t begin;
};

/* Copies bytes of the file, and adds the time that it took to *count. Errors are those of source_read(). */
int input_read(const struct input *input, uint64_t offset, void *dst, uint64_t bytes, struct fill_count *count,
               struct device_fault *ret_fault);

/* Reads a part and decodes it as the plan says, to its place in `dst`. Adds to *count. Errors are those of
 * source_read(). If the bytes are in memory, the part has no piece that is gathered from several places: plan_gather().
 */
int chunk_part_decode(const struct input *input, const struct plan *plan, const struct chunk *chunk,
                      const struct chunk_part *part, void *dst, struct fill_count *count,
                      struct device_fault *ret_fault);
