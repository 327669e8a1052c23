/* One chunk on its way: read from the file into a slot, decoded where the CPU does that, handed to the device.
 *
 * A fill is queued from the loop. As many workers as are free take its parts, one after another; the one that finishes
 * the last of them hands the slot over. It goes on on the device's threads, and comes back to the loop. Few slots that
 * all workers fill together stay in the processor's cache from the read to the copy, which many that each fill alone do
 * not. */
#pragma once

#include "daemon/base/mailbox.h"
#include "daemon/device/device.h"
#include "daemon/model/plan.h"
#include "daemon/model/source.h"

#include <stdatomic.h>
#include <stdint.h>
#include <uv.h>

/* What was done, and how long it took. */
struct fill_count {
    uint64_t overflows;
    uint64_t read_ns;
    uint64_t decode_ns;
};

/* What one worker did of a fill: all parts that it came to take, which may be none. */
struct fill_share {
    struct fill *fill;
    uv_work_t work;

    int status;
    struct device_fault fault;
    struct fill_count count;
    unsigned worker;
    uint64_t begin_ns; /* CLOCK_MONOTONIC */
    uint64_t end_ns;
};

#define FILL_SHARES_MAX 16u /* more workers would be in each other's way: they wait for the same memory */

struct fill {
    /* What to do; all borrowed until `done`. */
    const struct source *source;
    const void *memory; /* NULL, or where the bytes are instead of in the source */
    const struct plan *plan;
    const struct chunk *chunk;
    struct slot *slot;
    struct arena *arena; /* NULL: it is not there yet, and the fill comes back `held` */
    struct mailbox *mailbox;
    unsigned workers; /* how many there are */
    bool last;        /* nothing is filled behind it that would push its bytes out of the workers' caches */
    void (*done)(struct fill *fill); /* called on the loop, exactly once; it may free the fill */
    void *context;

    /* What came of it. */
    int status;
    bool held;    /* the slot is filled, and waits for fill_continue() */
    bool of_file; /* it was the file that failed, not the device */
    struct device_fault fault;
    uint64_t overflows;
    size_t n_shares;
    struct fill_share shares[FILL_SHARES_MAX];
    struct transfer transfer;

    uv_work_t work; /* fill_continue()'s */
    struct letter letter;
    size_t n_parts;
    struct part parts[PLAN_PARTS_MAX];
    atomic_uint taken;    /* parts that workers took */
    atomic_uint unfilled; /* parts that they have not done */
    atomic_bool failed;   /* one of them could not be done: the others need not be */
    size_t under_way;     /* of what comes back to the loop: the shares, or the job, and the transfer */
};

/* loop. `done` will be called. */
void fill_queue(uv_loop_t *loop, struct fill *fill);

/* loop. Hands the slot of a fill over that was held, now that there is an arena. `done` will be called again. One that
 * is not continued is the caller's as it is. */
void fill_continue(uv_loop_t *loop, struct fill *fill, struct arena *arena);

/* worker. Reads a part of a chunk to where it belongs in `dst`, the chunk's slot, and decodes as the plan says. Also
 * what Verify compares with. Adds to *count. Errors are those of source_read(). */
int fill_read(const struct source *source, const struct plan *plan, const struct chunk *chunk, const struct part *part,
              void *dst, struct fill_count *count, struct device_fault *ret_fault);
