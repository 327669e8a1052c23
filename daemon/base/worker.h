/* The threads that read, decode and do whatever else may take time: giving them jobs, their lower priority (the loop
 * has to answer within a millisecond while all processors read and decode), their numbers, and memory of their own.
 *
 * Jobs reach them by a queue without locks: a worker has a lower priority, and while it had lost its processor the loop
 * would wait for it.
 *
 * A file may not answer: its file system is a process of some user (FUSE), or a server that is down. A system call that
 * waits for it cannot be ended. So a job that uses files is queued with whose job it is and which file it reads. If one
 * of its calls does not return for WORKER_HANG_NS, and the thread sleeps, the job *hangs*, and from then on
 *   - another thread takes the place of the one that waits, so that as many as before work for the others;
 *   - jobs that read the same file, and were not begun, wait until it answers;
 *   - if more jobs of one user hang than there are workers, no further job of the user that uses files is begun.
 * So one user's files take at most two threads for each worker, which others do not miss. There are at most
 * WORKER_SPARES threads more for each worker; if users who work together make that many hang, jobs wait for them. */
#pragma once

#include "daemon/base/mailbox.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

#define WORKER_HANG_NS 1000000000u
#define WORKER_SPARES  8u

struct workers;

/* Whose job it is, and the file that it reads. */
struct work_reads {
    uid_t uid;
    uint64_t dev, ino; /* both 0: not known yet */
};

/* A job, part of a larger struct. It belongs to the queue from worker_queue() until done() is called. */
struct work {
    void *data; /* the caller's */

    void (*run)(struct work *work);  /* on a worker */
    void (*done)(struct work *work); /* on the loop */
    struct work *next;
    struct letter letter;    /* for the way back */
    struct workers *workers; /* the queue's */

    /* Loop: */
    bool uses_files, hangs, waits, always;
    bool file_hangs; /* it hangs, and a file is what it waits for, not a device */
    struct work_reads reads;
    TAILQ_ENTRY(work) link;
    /* Worker and loop: */
    atomic_bool stay;                /* it is not to be begun: it comes back to the loop, and waits there */
    atomic_bool stayed;              /* it did */
    atomic_uint_least64_t in_file;   /* uv_hrtime() of worker_file_begin(); 0: it is not there */
    atomic_uint_least64_t in_device; /* the same of worker_device_begin() */
    atomic_int thread;               /* gettid(); valid if in_file is not 0 */
};

/* loop. No thread yet: jobs wait. The mailbox outlives it. -ENOMEM. */
int workers_new(uv_loop_t *loop, struct mailbox *mailbox, struct workers **ret);

/* loop. Starts `n` workers. If not all can be started, the errno, and how many were. */
int workers_begin(struct workers *workers, unsigned n, unsigned *ret_begun);

/* loop. How many nanoseconds a driver's call may take: without it, for ever. */
void workers_set_device_patience(struct workers *workers, uint64_t patience);

/* loop. `changed` is called when jobs begin to hang, or go on again. */
void workers_watch(struct workers *workers, void (*changed)(void *context), void *context);

/* loop. Whether there are jobs, and all of them hang, or wait for some that do. */
bool workers_are_stuck(const struct workers *workers);

/* loop. The threads end when no job is left. Then `ended` is called on the loop, and the memory is freed. */
void workers_end(struct workers *workers, void (*ended)(void *context), void *context);

/* loop. A worker calls run(); then the loop calls done(), always: a queued job is never cancelled. */
void worker_queue(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work));

/* loop. The same for a job that uses files. */
void worker_queue_reading(struct workers *workers, struct work *work, const struct work_reads *reads, void *data,
                          void (*run)(struct work *work), void (*done)(struct work *work));

/* loop. The same for a job that is begun even if others of its user hang. The caller sees to it that a user has only
 * one of them at a time. */
void worker_queue_always(struct workers *workers, struct work *work, uid_t uid, void *data,
                         void (*run)(struct work *work), void (*done)(struct work *work));

/* loop. Whether such a job would wait now, because of others that hang. */
bool workers_keep_waiting(const struct workers *workers, const struct work_reads *reads);

/* loop. How many jobs hang now, of one user or of all. */
unsigned workers_hanging(const struct workers *workers);
unsigned workers_hanging_of(const struct workers *workers, uid_t uid);

/* Any worker, before and after it does what may wait for a file, and does not take long otherwise. On other threads,
 * and in other jobs, they do nothing. Where they are nested the outer ones count. */
void worker_file_begin(void);
void worker_file_end(void);

/* Any worker, before and after calls of a device's driver. Another thread takes the worker's place if they do not
 * return for as long as workers_set_device_patience() says. Where they are nested the outer ones count. */
void worker_device_begin(void);
void worker_device_end(void);

/* loop. Jobs that no worker has taken yet, those that wait because others hang among them. */
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
