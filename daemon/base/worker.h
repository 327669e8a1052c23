/* Threads of the work queue: giving them jobs, their lower priority (the loop has to answer within a millisecond while
 * all processors read and decode), their numbers, and memory of their own to work in. */
#pragma once

#include <stddef.h>
#include <uv.h>

/* Loop. A worker calls run(); then the loop calls done(), always: a queued job is never cancelled. The caller keeps
 * `work` and `data` (work->data) until then. */
void worker_queue(uv_loop_t *loop, uv_work_t *work, void *data, uv_work_cb run, uv_after_work_cb done);

/* Any thread of the work queue, at the beginning of each long job: lowers the thread's priority below the loop's. Costs
 * nothing after the first call. */
void worker_step_back(void);

/* The calling thread's number: threads are numbered from 0 in the order in which they first call this. Any thread. */
unsigned worker_number(void);

/* Bytes that are read at once before they are decoded: few enough to stay in a core's cache. */
#define WORKER_SCRATCH ((size_t)256 << 10)

/* WORKER_SCRATCH bytes that are the calling thread's alone, aligned to 4096, for as long as it runs. */
void *worker_scratch(void);
