#include "daemon/base/worker.h"

#include "daemon/base/log.h"
#include "daemon/base/worker_threads.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* How often the loop looks whether jobs hang, while there are any. */
#define LOOK_MS 250u

TAILQ_HEAD(work_list, work);

struct workers {
    struct worker_threads *threads;
    struct mailbox *mailbox;
    uv_timer_t look;
    unsigned n;               /* regular threads */
    struct work_list running; /* jobs, queued or running */
    struct work_list waiting; /* jobs that wait because others hang */
    unsigned n_jobs;          /* all that are not over */
    unsigned n_hanging, n_waiting;
    uint64_t device_patience; /* 0: for ever */
    void (*changed)(void *context);
    void *changed_context;
    void (*ended)(void *context);
    void *ended_context;
};

static void work_run(struct work *work);

int workers_new(uv_loop_t *loop, struct mailbox *mailbox, struct workers **ret)
{
    struct workers *workers = calloc(1, sizeof(*workers));
    if (!workers || worker_threads_new(mailbox, work_run, &workers->threads) < 0) {
        free(workers);
        return -ENOMEM;
    }
    TAILQ_INIT(&workers->running);
    TAILQ_INIT(&workers->waiting);
    uv_timer_init(loop, &workers->look); /* never fails */
    workers->look.data = workers;
    workers->mailbox = mailbox;
    *ret = workers;
    return 0;
}

int workers_begin(struct workers *workers, unsigned n)
{
    workers->n = n;
    return worker_threads_begin(workers->threads, workers->look.loop, n, n * WORKER_SPARES);
}

void workers_set_device_patience(struct workers *workers, uint64_t patience)
{
    workers->device_patience = patience;
}

void workers_watch(struct workers *workers, void (*changed)(void *context), void *context)
{
    workers->changed = changed;
    workers->changed_context = context;
}

static void workers_closed(uv_handle_t *handle)
{
    struct workers *workers = handle->data;
    void (*ended)(void *) = workers->ended;
    void *context = workers->ended_context;
    free(workers);
    ended(context);
}

static void threads_ended(void *context)
{
    struct workers *workers = context;
    uv_close((uv_handle_t *)&workers->look, workers_closed);
}

void workers_end(struct workers *workers, void (*ended)(void *context), void *context)
{
    workers->ended = ended;
    workers->ended_context = context;
    worker_threads_end(workers->threads, threads_ended, workers);
}

/* --- who hangs, and who waits --- */

bool work_held_up(const struct work *work)
{
    return work->watch.files && (work->hangs || work->waits);
}

unsigned workers_hanging(const struct workers *workers)
{
    return workers->n_hanging;
}

unsigned workers_hanging_of(const struct workers *workers, uid_t uid)
{
    unsigned n = 0;
    const struct work *work;
    TAILQ_FOREACH(work, &workers->running, link)
    {
        n += (work->hangs & WORKER_HANGS_FILE) && work->reads.uid == uid;
    }
    return n;
}

bool workers_are_stuck(const struct workers *workers)
{
    return workers->n_jobs > 0 && workers->n_jobs <= workers->n_hanging + workers->n_waiting;
}

unsigned workers_waiting(struct workers *workers)
{
    return worker_threads_queued(workers->threads) + workers->n_waiting;
}

static bool same_file(const struct work_reads *a, const struct work_reads *b)
{
    return (a->dev | a->ino) != 0 && a->dev == b->dev && a->ino == b->ino;
}

bool workers_keep_waiting(const struct workers *workers, const struct work_reads *reads)
{
    if (workers->n_hanging == 0)
        return false;
    const struct work *work;
    TAILQ_FOREACH(work, &workers->running, link)
    {
        if ((work->hangs & WORKER_HANGS_FILE) && same_file(reads, &work->reads))
            return true;
    }
    return workers_hanging_of(workers, reads->uid) > workers->n;
}

static bool work_must_wait(const struct workers *workers, const struct work *work)
{
    return work->watch.files && !work->always && workers_keep_waiting(workers, &work->reads);
}

static void work_wait(struct workers *workers, struct work *work)
{
    work->waits = true;
    atomic_store(&work->stay, false);
    atomic_store(&work->stayed, false);
    TAILQ_INSERT_TAIL(&workers->waiting, work, link);
    workers->n_waiting++;
}

static void work_begin(struct workers *workers, struct work *work)
{
    TAILQ_INSERT_TAIL(&workers->running, work, link);
    worker_threads_push(workers->threads, work);
}

/* Those that may go on do. */
static void waiting_release(struct workers *workers)
{
    struct work *next;
    for (struct work *work = TAILQ_FIRST(&workers->waiting); work; work = next) {
        next = TAILQ_NEXT(work, link);
        if (work_must_wait(workers, work))
            continue;
        TAILQ_REMOVE(&workers->waiting, work, link);
        workers->n_waiting--;
        work->waits = false;
        work_begin(workers, work);
    }
}

/* What hangs has changed. */
static void hanging_changed(struct workers *workers)
{
    worker_threads_set_spares(workers->threads, workers->n_hanging);
    waiting_release(workers);
    if (workers->changed)
        workers->changed(workers->changed_context);
}

/* Returns whether this changed. */
static bool work_set_hangs(struct workers *workers, struct work *work, unsigned hangs)
{
    const unsigned before = work->hangs;
    work->hangs = hangs;
    workers->n_hanging += (hangs != 0) - (before != 0);
    if ((hangs & WORKER_HANGS_FILE) && !(before & WORKER_HANGS_FILE))
        log_client(LOG_LEVEL_WARNING, "uid=%u a file does not answer: inode %" PRIu64 " of device %#" PRIx64,
                   (unsigned)work->reads.uid, work->reads.ino, work->reads.dev);
    return hangs != before;
}

static void look(uv_timer_t *timer)
{
    struct workers *workers = timer->data;
    const uint64_t now = uv_hrtime();
    bool changed = false;
    struct work *work;
    TAILQ_FOREACH(work, &workers->running, link)
    {
        changed |= work_set_hangs(workers, work, worker_watch_hangs(&work->watch, now, workers->device_patience));
    }
    if (changed) {
        TAILQ_FOREACH(work, &workers->running, link)
        {
            if (!work->hangs && work_must_wait(workers, work))
                atomic_store(&work->stay, true); /* if it has begun already, this does nothing */
        }
        hanging_changed(workers);
    } else
        worker_threads_set_spares(workers->threads, workers->n_hanging); /* if one could not be started before */
    if (workers->n_jobs == 0)
        uv_timer_stop(timer);
}

/* --- jobs --- */

/* A job has come back. Returns false if it was not begun, and waits. */
static bool work_returned(struct workers *workers, struct work *work)
{
    TAILQ_REMOVE(&workers->running, work, link);
    if (atomic_load(&work->stayed)) {
        work_wait(workers, work);
        waiting_release(workers); /* what it stays for may be over by now */
        return false;
    }
    if (work_set_hangs(workers, work, 0))
        hanging_changed(workers);
    return true;
}

static void work_deliver(struct letter *letter)
{
    struct work *work = (struct work *)((char *)letter - offsetof(struct work, letter));
    struct workers *workers = work->workers;
    if (!work_returned(workers, work))
        return;
    workers->n_jobs--;
    work->done(work);
}

/* On a worker. */
static void work_run(struct work *work)
{
    if (atomic_load(&work->stay))
        atomic_store(&work->stayed, true);
    else {
        worker_watch_set(&work->watch);
        work->run(work);
        worker_watch_set(NULL);
    }
    work->letter.deliver = work_deliver;
    mailbox_post(work->workers->mailbox, &work->letter);
}

/* The caller has set `always` and `reads`. */
static void queue(struct workers *workers, struct work *work, bool files, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work))
{
    work->workers = workers;
    work->data = data;
    work->run = run;
    work->done = done;
    work->hangs = 0;
    work->waits = false;
    worker_watch_init(&work->watch, files);
    atomic_init(&work->stay, false);
    atomic_init(&work->stayed, false);
    workers->n_jobs++;
    if (!uv_is_active((uv_handle_t *)&workers->look))
        uv_timer_start(&workers->look, look, LOOK_MS, LOOK_MS);
    if (work_must_wait(workers, work))
        work_wait(workers, work);
    else
        work_begin(workers, work);
}

void worker_queue(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work))
{
    work->always = false;
    work->reads = (struct work_reads){0};
    queue(workers, work, false, data, run, done);
}

void worker_queue_reading(struct workers *workers, struct work *work, const struct work_reads *reads, void *data,
                          void (*run)(struct work *work), void (*done)(struct work *work))
{
    work->always = false;
    work->reads = *reads;
    queue(workers, work, true, data, run, done);
}

void worker_queue_always(struct workers *workers, struct work *work, uid_t uid, void *data,
                         void (*run)(struct work *work), void (*done)(struct work *work))
{
    work->always = true;
    work->reads = (struct work_reads){.uid = uid};
    queue(workers, work, true, data, run, done);
}
