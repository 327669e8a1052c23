/* What a job waits for, a file or a device's driver, and for how long: the worker notes it, the loop asks. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* A file that has not answered for so long hangs, if the thread sleeps. */
#define WORKER_HANG_NS 1000000000u

/* Part of a job. */
struct worker_watch {
    bool files;                      /* it uses files; set before the job is queued */
    atomic_uint_least64_t in_file;   /* uv_hrtime() of worker_file_begin(); 0: it is not there */
    atomic_uint_least64_t in_device; /* the same of worker_device_begin() */
    atomic_int thread;               /* gettid(); valid if in_file is not 0 */
};

/* What hangs. Both may. */
#define WORKER_HANGS_FILE   1u
#define WORKER_HANGS_DEVICE 2u

/* loop, before the job is queued. */
void worker_watch_init(struct worker_watch *watch, bool files);

/* Worker: the thread's job from now on. NULL: none. */
void worker_watch_set(struct worker_watch *watch);

/* loop. now: uv_hrtime(). A driver's call hangs after `device_patience` nanoseconds; 0: never. */
unsigned worker_watch_hangs(const struct worker_watch *watch, uint64_t now, uint64_t device_patience);

/* Any worker, before and after it does what may wait for a file, and does not take long otherwise. On other threads,
 * and in other jobs, they do nothing. Where they are nested the outer ones count. */
void worker_file_begin(void);
void worker_file_end(void);

/* Any worker, before and after calls of a device's driver. Another thread takes the worker's place if they do not
 * return for as long as workers_set_device_patience() says. Where they are nested the outer ones count. */
void worker_device_begin(void);
void worker_device_end(void);
