/* A fill moves one chunk: reads it from the file into a slot, decodes it if the CPU does that, and hands it to the
 * device.
 *
 * A fill is queued from the loop. All workers that are free take its parts, one after another. The worker that finishes
 * the last part hands the slot to the device. The device's threads copy it, and the fill comes back to the loop. All
 * workers fill the same few slots, because these stay in the processor's cache from the read to the copy. If each
 * worker filled a slot of its own, there would be too many slots for the cache. */
#pragma once

#include "daemon/base/mailbox.h"
#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/load/gather.h"
#include "daemon/model/plan.h"
#include "daemon/model/source.h"

#include <stdatomic.h>
#include <stdint.h>
#include <uv.h>

/* The work of one worker on a fill: all parts that it took, which may be none. */
struct fill_share {
    struct fill *fill;
    struct work work;

    int status;
    struct device_fault fault;
    struct fill_count count;
    unsigned worker;
    uint64_t begin_ns; /* CLOCK_MONOTONIC */
    uint64_t end_ns;
};

#define FILL_SHARES_MAX 16u /* more workers do not help: they wait for the same memory */

struct fill {
    /* In. All borrowed until `done`. */
    const struct source *source;
    const void *memory; /* if not NULL, the bytes are copied from here, not read from the source */
    const struct plan *plan;
    const struct chunk *chunk;
    struct slot *slot;
    struct arena *arena; /* NULL: there is none yet; the fill comes back as `held` */
    struct mailbox *mailbox;
    unsigned workers;                /* number of worker threads */
    bool last;                       /* too few chunks follow to push its bytes out of the workers' caches */
    void (*done)(struct fill *fill); /* called on the loop, exactly once; it may free the fill */
    void *context;

    /* Out. */
    int status;
    bool held;    /* the slot is full, and the fill waits for fill_continue() */
    bool of_file; /* the error is the file's, not the device's */
    struct device_fault fault;
    uint64_t overflows;
    size_t n_shares;
    struct fill_share shares[FILL_SHARES_MAX];
    struct transfer transfer;

    struct work work; /* for fill_continue() */
    struct letter letter;
    size_t n_parts;
    struct part parts[PLAN_PARTS_MAX];
    atomic_uint taken;                 /* number of parts that workers took */
    atomic_uint unfilled;              /* number of parts that are not finished */
    atomic_uint_least64_t handed_over; /* uv_hrtime() when the device got the slot; 0: it has not got it, or is done */
    atomic_bool failed;                /* a part failed: workers skip the others */
    size_t under_way;                  /* how many will come back to the loop: the shares or `work`, and the transfer */
};

/* Loop thread. Begins a fill. `done` will be called. */
void fill_queue(struct workers *workers, struct fill *fill);

/* Loop thread. Goes on with a held fill, now that there is an arena: hands its slot to the device. `done` will be
 * called again. A held fill has nothing under way: the caller may also drop it, and reuse its slot. */
void fill_continue(struct workers *workers, struct fill *fill, struct arena *arena);

/* Worker thread. Reads a part of a chunk, and decodes it as the plan says, to its place in `dst`, which is laid out as
 * the chunk's slot. Verify uses it too. Adds to *count. Errors are those of source_read(). */
int fill_read(const struct source *source, const struct plan *plan, const struct chunk *chunk, const struct part *part,
              void *dst, struct fill_count *count, struct device_fault *ret_fault);
