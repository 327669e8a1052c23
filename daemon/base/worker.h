/* What is a worker thread's own: its place behind the loop, which has to answer within a millisecond while all
 * processors read and decode, its number, and memory to work in. */
#pragma once

#include <stddef.h>
#include <uv.h>

/* Loop. Has a worker run the job, which has `data`; then done(), always, on the loop. Whoever waits for it keeps `work`
 * and `data` until then: a job that is queued is never taken back. */
void worker_queue(uv_loop_t *loop, uv_work_t *work, void *data, uv_work_cb run, uv_after_work_cb done);

/* Any thread of the work queue, at the beginning of each long job. Cheap after the first time. */
void worker_step_back(void);

/* Numbers the threads that asked, from 0. Any thread. */
unsigned worker_number(void);

/* What is read before it is decoded: small enough to stay in a core's cache. */
#define WORKER_SCRATCH ((size_t)256 << 10)

/* WORKER_SCRATCH bytes that are the calling thread's alone, aligned to 4096, for as long as it runs. */
void *worker_scratch(void);
