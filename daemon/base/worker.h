/* The threads that read, decode and do whatever else may take time: giving them jobs, their lower priority (the loop
 * has to answer within a millisecond while all processors read and decode), their numbers, and memory of their own.
 *
 * They are the threads of libuv's work queue: each worker is one request of it, which lasts as long as the daemon. Jobs
 * reach them by a queue of ours, because uv_queue_work() and its way back take locks that workers hold, too: a worker
 * has a lower priority, and while it had lost its processor the loop would wait for it. Here the loop takes no lock. */
#pragma once

#include "daemon/base/mailbox.h"

#include <stddef.h>
#include <uv.h>

struct workers;

/* A job, part of a larger struct. It belongs to the queue from worker_queue() until done() is called. */
struct work {
    void *data; /* the caller's */

    void (*run)(struct work *work);  /* on a worker */
    void (*done)(struct work *work); /* on the loop */
    struct work *next;
    struct letter letter; /* for the way back */
};

/* loop. No thread yet: jobs wait. The mailbox outlives it. -ENOMEM. */
int workers_new(struct mailbox *mailbox, struct workers **ret);

/* loop. Starts `n` workers. libuv's work queue has as many threads (UV_THREADPOOL_SIZE), and no other requests.
 * -ENOMEM.
 */
int workers_begin(struct workers *workers, uv_loop_t *loop, unsigned n);

/* loop. The threads end when no job is left. Then `ended` is called on the loop, and the memory is freed. */
void workers_end(struct workers *workers, void (*ended)(void *context), void *context);

/* loop. A worker calls run(); then the loop calls done(), always: a queued job is never cancelled. */
void worker_queue(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work));

/* loop. Jobs that no worker has taken yet. */
unsigned workers_waiting(struct workers *workers);

/* Any worker, at the beginning of each long job: lowers the thread's priority below the loop's. Costs nothing after the
 * first call. */
void worker_step_back(void);

/* The calling thread's number: threads are numbered from 0 in the order in which they first call this. Any thread. */
unsigned worker_number(void);

/* Bytes that are read at once before they are decoded: few enough to stay in a core's cache. */
#define WORKER_SCRATCH ((size_t)256 << 10)

/* WORKER_SCRATCH bytes that are the calling thread's alone, aligned to 4096, for as long as it runs. */
void *worker_scratch(void);
