/* One chunk on its way: read from the file into a slot, decoded where the CPU does that, handed to the device.
 *
 * A fill is queued from the loop, runs on a worker, goes on on the device's threads, and comes back to the loop. */
#pragma once

#include "daemon/device.h"
#include "daemon/mailbox.h"
#include "daemon/plan.h"
#include "daemon/source.h"

#include <stdint.h>
#include <uv.h>

struct fill {
    /* What to do; all borrowed until `done`. */
    const struct source *source;
    const void *memory; /* NULL, or where the bytes are instead of in the source */
    const struct plan *plan;
    const struct chunk *chunk;
    struct slot *slot;
    struct arena *arena;
    struct mailbox *mailbox;
    void (*done)(struct fill *fill); /* called on the loop, exactly once; it may free the fill */
    void *context;

    /* What came of it. */
    int status;
    bool of_file; /* it was the file that failed, not the device */
    struct device_fault fault;
    uint64_t overflows;
    unsigned worker;
    uint64_t begin_ns; /* CLOCK_MONOTONIC: of the worker's part */
    uint64_t read_ns;
    uint64_t decode_ns;
    uint64_t end_ns;
    struct transfer transfer;

    uv_work_t work;
    struct letter letter;
    unsigned under_way; /* of the two that come back: the worker's job and the transfer */
};

/* loop. `done` will be called. */
void fill_queue(uv_loop_t *loop, struct fill *fill);

/* worker. Reads a chunk into `dst`, `scratch` being SLOT_SCRATCH bytes, and decodes as the plan says. Also what Verify
 * compares with. *ret_overflows is added to. */
int fill_read(const struct source *source, const struct plan *plan, const struct chunk *chunk, void *dst, void *scratch,
              uint64_t *overflows, uint64_t *read_ns, uint64_t *decode_ns, struct device_fault *ret_fault);
