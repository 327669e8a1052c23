/* Jobs for the workers, which read, decode and do whatever else may take time; and which jobs wait because others hang.
 *
 * A file may not answer: its file system is a process of some user (FUSE), or a server that is down. A system call that
 * waits for it cannot be ended. So a job that uses files is queued with whose job it is and which file it reads. If one
 * of its calls does not return for WORKER_HANG_NS, and the thread sleeps, the job *hangs*, and from then on
 *   - a spare thread takes the place of the one that waits, so that as many as before work for the others;
 *   - jobs that read the same file, and were not begun, wait until it answers;
 *   - if more jobs of one user hang than there are workers, no further job of the user that uses files is begun.
 * So one user's files take at most two threads for each worker, which others do not miss. There are at most
 * WORKER_SPARES spare threads for each worker; if users who work together make that many hang, jobs wait for them. */
#pragma once

#include "daemon/base/mailbox.h"
#include "daemon/base/worker_self.h"
#include "daemon/base/worker_watch.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

#define WORKER_SPARES 8u

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
    struct worker_watch watch;

    /* Loop: */
    unsigned hangs; /* WORKER_HANGS_FILE, WORKER_HANGS_DEVICE */
    bool waits;     /* it is not begun because others hang */
    bool always;
    struct work_reads reads;
    TAILQ_ENTRY(work) link;

    /* Worker and loop: */
    atomic_bool stay;   /* it is not to be begun: it comes back to the loop, and waits there */
    atomic_bool stayed; /* it did */
};

/* loop. No thread yet: jobs wait. The mailbox outlives it. -ENOMEM. */
int workers_new(uv_loop_t *loop, struct mailbox *mailbox, struct workers **ret);

/* loop. Starts `n` workers: see worker_threads_begin(). -ENOMEM. */
int workers_begin(struct workers *workers, unsigned n);

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

/* loop. Whether the job uses files, and hangs, or waits because others do. */
bool work_held_up(const struct work *work);

/* loop. How many jobs hang now, and how many of one user's wait for files. */
unsigned workers_hanging(const struct workers *workers);
unsigned workers_hanging_of(const struct workers *workers, uid_t uid);

/* loop. Jobs that no worker has taken yet, those that wait because others hang among them. */
unsigned workers_waiting(struct workers *workers);
