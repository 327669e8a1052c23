/* What every part of the daemon that works asynchronously needs: the loop, the way back to it from other threads, how
 * many workers there are, the count of jobs under way, and the counters of what happened.
 *
 * Loop thread only, but for `workers`, which is set once. */
#pragma once

#include "daemon/base/counters.h"
#include "daemon/base/later.h"
#include "daemon/base/mailbox.h"
#include "daemon/base/worker.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct closer;

struct core {
    uv_loop_t *loop;
    struct mailbox *mailbox;
    struct workers *queue;
    struct laters laters;
    struct closer *closer; /* of files that clients have sent; NULL until there are quotas */
    unsigned workers;      /* threads that take jobs from it */
    bool has_processor;    /* the loop has one to itself: there are fewer workers than processors */
    bool stopping;         /* nothing new is begun */
    struct counters counters;
    uint64_t steps; /* that are over: jobs, and chunks of loads; it grows while there is progress */
    size_t n_jobs;  /* loads, unloads, verifications, plans: the daemon does not end before them */

    /* The owner's. Both are called on the loop, and may be NULL. */
    void (*changed)(struct core *core);         /* models came or went, or a job began or ended */
    void (*busy)(struct core *core, bool busy); /* the first job began, or the last one ended */

    uv_idle_t busy_poller;
    uint64_t busy_poll_ends; /* uv_hrtime() */
};

/* 0 or a negative errno. */
int core_init(struct core *core, uv_loop_t *loop);

/* No job is under way. The loop lets go of the threads and handles later. */
void core_close(struct core *core);

/* Calls `changed`. */
void core_changed(struct core *core);

/* A job begins, or ends. */
void core_job_begin(struct core *core);
void core_job_end(struct core *core);

/* A step is about to end that another step waits for. For about two milliseconds the loop polls instead of sleeping, if
 * it has a processor to itself, so that nothing has to wake it. */
void core_keep_awake(struct core *core);
