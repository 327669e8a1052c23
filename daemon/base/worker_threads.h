/* The threads that run jobs, and the queue by which jobs reach them.
 *
 * The regular threads are those of libuv's work queue: each is one request of it, which lasts as long as the daemon.
 * Jobs reach them by a queue of ours, because uv_queue_work() and its way back take locks that workers hold, too: a
 * worker has a lower priority, and while it had lost its processor the loop would wait for it. Here the loop takes no
 * lock. Spare threads take jobs from the same queue, for as long as regular ones hang.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/mailbox.h"

#include <uv.h>

struct work;
struct worker_threads;

/* No thread yet: jobs wait. run() is called on a thread, for each job. The mailbox outlives the threads. -ENOMEM. */
int worker_threads_new(struct mailbox *mailbox, void (*run)(struct work *work), struct worker_threads **ret);

/* Starts `n` regular threads. libuv's work queue has at least as many (UV_THREADPOOL_SIZE), and no other requests;
 * libuv aborts if it cannot start them. There may be `most_spares` spare threads. -ENOMEM. */
int worker_threads_begin(struct worker_threads *threads, uv_loop_t *loop, unsigned n, unsigned most_spares);

/* How many spare threads there shall be; there may be fewer if the system has no more. Those that are too many end when
 * they have done their next job. */
void worker_threads_set_spares(struct worker_threads *threads, unsigned n);

/* Never waits. The job stays where it is until run() was called with it. */
void worker_threads_push(struct worker_threads *threads, struct work *work);

/* Jobs that no thread has taken yet. */
unsigned worker_threads_queued(struct worker_threads *threads);

/* The threads end when no job is left. Then `ended` is called on the loop, and the memory is freed. */
void worker_threads_end(struct worker_threads *threads, void (*ended)(void *context), void *context);
