/* What a worker has of its own: a number, memory, and a priority below the loop's. */
#pragma once

#include <stddef.h>

/* Any worker, at the beginning of each long job: lowers the thread's priority below the loop's, which has to answer
 * within a millisecond while all processors read and decode. Costs nothing after the first call. */
void worker_step_back(void);

/* The calling thread's number: threads are numbered from 0 in the order in which they first call this. Any thread. */
unsigned worker_number(void);

/* Bytes that are read at once before they are decoded: few enough to stay in a core's cache. */
#define WORKER_SCRATCH ((size_t)256 << 10)

/* WORKER_SCRATCH bytes that are the calling thread's alone, aligned to 4096, for as long as it runs. */
void *worker_scratch(void);
