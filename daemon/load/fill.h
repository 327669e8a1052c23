/* A fill moves one chunk: reads it from the file into a slot, decodes it if the CPU does that, and hands it to the
 * device.
 *
 * A fill is queued from the loop. All workers that are free take its parts, one after another. The worker that finishes
 * the last part hands the slot to the device. The device's threads copy it, and the fill comes back to the loop. All
 * workers fill the same few slots, because these stay in the processor's cache from the read to the copy. If each
 * worker filled a slot of its own, there would be too many slots for the cache.
 *
 * With `cold`, parts that are not in the page cache are read past it, and no worker waits for them. When they are
 * there, the fill comes back to the loop, and goes on from there: workers decode these parts, if the CPU does that. */
#pragma once

#include "daemon/base/mailbox.h"
#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/load/cold.h"
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

/* A part that is read past the page cache, or of which some pages are. */
struct part_read {
    struct direct_read read;
    struct fill *fill; /* NULL: the part was not read like this */
    struct chunk_part part;
    unsigned n_parts;          /* that were joined into this one */
    struct span_bytes whole;   /* all of it that is needed, in the file */
    struct span_bytes missing; /* what is read past the page cache */
    uint8_t *into;             /* where the byte at `whole.begin` goes */
    void *raw;                 /* memory that the bytes are decoded from; NULL: they are in the slot */
};

#define FILL_SHARES_MAX 16u /* more workers do not help: they wait for the same memory */

struct fill {
    /* In. All borrowed until `done`. */
    const struct source *source;
    uid_t uid;          /* who loads */
    const void *memory; /* if not NULL, the bytes are copied from here, not read from the source */
    bool pinned;        /* the device copies from `memory` by itself; then there is an arena */
    struct cold *cold;  /* NULL: everything is read through the page cache */
    const struct plan *plan;
    const struct chunk *chunk;
    struct slot *slot;
    struct arena *arena; /* NULL: there is none yet; the fill comes back as `waits` */
    struct mailbox *mailbox;
    unsigned workers;                /* number of worker threads */
    bool last;                       /* too few chunks follow to push its bytes out of the workers' caches */
    void (*done)(struct fill *fill); /* called on the loop, exactly once; it may free the fill */
    void *context;

    /* Out. */
    int status;
    bool waits;   /* the slot is full, and the fill waits for fill_continue() */
    bool of_file; /* the error is the file's, not the device's */
    struct device_fault fault;
    uint64_t overflows;
    size_t n_shares;
    struct fill_share shares[FILL_SHARES_MAX];
    struct transfer transfer;
    uint64_t direct_begin_ns; /* while parts were read past the page cache, by CLOCK_MONOTONIC; 0: none was */
    uint64_t direct_end_ns;

    struct workers *queue;
    struct work work; /* for a slot that is full and goes to the device */
    struct letter letter;
    size_t n_parts;
    struct chunk_part parts[CHUNK_PARTS_MAX];
    struct part_read reads[CHUNK_PARTS_MAX]; /* of the part of the same index, and those that were joined to it */
    atomic_uint n_reads;
    bool reads_over;
    atomic_uint taken;                 /* number of parts that workers took */
    atomic_uint unfilled;              /* number of parts that are not finished */
    atomic_uint_least64_t handed_over; /* uv_hrtime() when the device got the slot; 0: it has not got it, or is done */
    atomic_bool failed;                /* a part failed: workers skip the others */
    size_t under_way;                  /* how many will come back to the loop: the shares or `work`, and the letter */
};

/* Loop thread. Begins a fill. `done` will be called. */
void fill_queue(struct workers *workers, struct fill *fill);

/* Loop thread. Goes on with a waiting fill, now that there is an arena: hands its slot to the device. `done` will be
 * called again. A waiting fill has nothing under way: the caller may also drop it, and reuse its slot. */
void fill_continue(struct workers *workers, struct fill *fill, struct arena *arena);
