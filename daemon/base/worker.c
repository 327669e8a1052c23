#include "daemon/base/worker.h"

#include "daemon/base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* At this nice value a worker gets about a tenth of a processor that it shares with the loop (see sched(7)). */
#define WORKER_NICE 10

/* How often the loop looks whether jobs hang, while there are any that use files. */
#define LOOK_MS 250u

enum thread_state { THREAD_NONE, THREAD_RUNS, THREAD_ENDED /* it is to be joined */ };

struct thread {
    struct workers *workers;
    pthread_t id;
    enum thread_state state;
    struct letter letter; /* tells the loop that it has ended */
};

TAILQ_HEAD(work_list, work);

struct workers {
    sem_t jobs;           /* queued ones, and one for each thread that is to end; sem_post() never waits */
    struct work *last;    /* atomic: the job queued last; `next` leads to the one before it */
    pthread_mutex_t lock; /* guards `first`; workers only */
    struct work *first;   /* jobs in order, taken over from `last` */
    struct mailbox *mailbox;
    atomic_uint excess; /* threads that are to end */
    atomic_bool ending; /* all are */

    /* Loop: */
    uv_timer_t look;
    unsigned n;             /* how many shall work */
    struct thread *threads; /* places for `n_most` */
    unsigned n_most, n_threads;
    unsigned n_leaving;       /* of n_threads: were told to end, for `excess` */
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

/* The job of this thread, and how many worker_file_begin() and worker_device_begin() it is in. */
static __thread struct work *current;
static __thread unsigned depth, device_depth;

int workers_new(uv_loop_t *loop, struct mailbox *mailbox, struct workers **ret)
{
    struct workers *workers = calloc(1, sizeof(*workers));
    if (!workers)
        return -ENOMEM;
    sem_init(&workers->jobs, 0, 0); /* fails only for a value that is too large */
    pthread_mutex_init(&workers->lock, NULL);
    TAILQ_INIT(&workers->running);
    TAILQ_INIT(&workers->waiting);
    uv_timer_init(loop, &workers->look); /* never fails */
    workers->look.data = workers;
    workers->mailbox = mailbox;
    *ret = workers;
    return 0;
}

/* --- the threads --- */

/* The job queued first. NULL: there is none. */
static struct work *take(struct workers *workers)
{
    pthread_mutex_lock(&workers->lock);
    if (!workers->first) {
        struct work *work = __atomic_exchange_n(&workers->last, NULL, __ATOMIC_ACQUIRE);
        while (work) {
            struct work *before = work->next;
            work->next = workers->first;
            workers->first = work;
            work = before;
        }
    }
    struct work *work = workers->first;
    if (work)
        workers->first = work->next;
    pthread_mutex_unlock(&workers->lock);
    return work;
}

static bool is_excess(struct workers *workers)
{
    unsigned excess = atomic_load(&workers->excess);
    while (excess > 0)
        if (atomic_compare_exchange_weak(&workers->excess, &excess, excess - 1))
            return true;
    return false;
}

static void work_deliver(struct letter *letter);

static void thread_work(struct workers *workers, struct work *work)
{
    if (work->uses_files && atomic_load(&work->stay))
        atomic_store(&work->stayed, true);
    else {
        current = work;
        work->run(work);
        current = NULL;
    }
    work->letter.deliver = work_deliver;
    mailbox_post(workers->mailbox, &work->letter);
}

static void *thread_main(void *argument)
{
    struct thread *thread = argument;
    struct workers *workers = thread->workers;
    while (!is_excess(workers)) {
        while (sem_wait(&workers->jobs) < 0)
            ; /* a signal */
        struct work *work = take(workers);
        if (work)
            thread_work(workers, work);
        else if (atomic_load(&workers->ending))
            break;
    }
    mailbox_post(workers->mailbox, &thread->letter);
    return NULL;
}

static void workers_closed(uv_handle_t *handle)
{
    struct workers *workers = handle->data;
    void (*ended)(void *) = workers->ended;
    void *context = workers->ended_context;
    sem_destroy(&workers->jobs);
    pthread_mutex_destroy(&workers->lock);
    free(workers->threads);
    free(workers);
    ended(context);
}

static void workers_end_if_done(struct workers *workers)
{
    if (!workers->ended || workers->n_threads > 0 || uv_is_closing((uv_handle_t *)&workers->look))
        return;
    for (unsigned i = 0; i < workers->n_most; i++)
        if (workers->threads[i].state == THREAD_ENDED)
            pthread_join(workers->threads[i].id, NULL);
    uv_close((uv_handle_t *)&workers->look, workers_closed);
}

/* The thread is about to end. It is joined later: the loop would wait for it. */
static void thread_ended(struct letter *letter)
{
    struct thread *thread = (struct thread *)((char *)letter - offsetof(struct thread, letter));
    thread->state = THREAD_ENDED;
    thread->workers->n_threads--;
    if (thread->workers->n_leaving > 0)
        thread->workers->n_leaving--;
    workers_end_if_done(thread->workers);
}

/* 0 or a negative errno. */
static int thread_begin(struct workers *workers)
{
    struct thread *thread = workers->threads;
    while (thread->state == THREAD_RUNS)
        thread++;
    if (thread->state == THREAD_ENDED)
        pthread_join(thread->id, NULL);
    *thread = (struct thread){.workers = workers, .letter.deliver = thread_ended};
    int r = -pthread_create(&thread->id, NULL, thread_main, thread);
    if (r < 0)
        return r;
    thread->state = THREAD_RUNS;
    workers->n_threads++;
    return 0;
}

int workers_begin(struct workers *workers, unsigned n, unsigned *ret_begun)
{
    *ret_begun = 0;
    workers->n = n;
    workers->n_most = n + n * WORKER_SPARES;
    workers->threads = calloc(workers->n_most, sizeof(*workers->threads));
    if (!workers->threads)
        return -ENOMEM;
    int r = 0;
    while (workers->n_threads < n && (r = thread_begin(workers)) == 0)
        ;
    *ret_begun = workers->n_threads;
    return r;
}

/* Takes back that a thread is to end, if none has taken it up. */
static bool excess_take_back(struct workers *workers)
{
    const bool taken_back = is_excess(workers);
    workers->n_leaving -= taken_back;
    return taken_back;
}

/* Has as many threads as shall work, and one for each job that hangs. */
static void threads_adjust(struct workers *workers)
{
    if (workers->ended)
        return; /* a new thread would take what tells another one to end */
    const unsigned most = workers->n_most, hoped = workers->n + workers->n_hanging;
    const unsigned wanted = hoped < most ? hoped : most;
    while (workers->n_threads - workers->n_leaving < wanted && excess_take_back(workers))
        ;
    while (workers->n_threads - workers->n_leaving < wanted && workers->n_threads < most && thread_begin(workers) == 0)
        ; /* if one cannot be started, the next look tries again */
    while (workers->n_threads - workers->n_leaving > wanted) {
        workers->n_leaving++;
        atomic_fetch_add(&workers->excess, 1);
        sem_post(&workers->jobs); /* it may sleep */
    }
}

/* --- jobs --- */

static void work_push(struct workers *workers, struct work *work)
{
    work->next = __atomic_load_n(&workers->last, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&workers->last, &work->next, work, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    sem_post(&workers->jobs);
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
        n += work->file_hangs && work->reads.uid == uid;
    }
    return n;
}

bool workers_keep_waiting(const struct workers *workers, const struct work_reads *reads)
{
    if (workers->n_hanging == 0)
        return false;
    const struct work *work;
    TAILQ_FOREACH(work, &workers->running, link)
    {
        if (work->file_hangs && (reads->dev | reads->ino) != 0 && work->reads.dev == reads->dev &&
            work->reads.ino == reads->ino)
            return true;
    }
    return workers_hanging_of(workers, reads->uid) > workers->n;
}

static bool work_must_wait(const struct workers *workers, const struct work *work)
{
    return work->uses_files && !work->always && workers_keep_waiting(workers, &work->reads);
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
        TAILQ_INSERT_TAIL(&workers->running, work, link);
        work_push(workers, work);
    }
}

unsigned workers_waiting(struct workers *workers)
{
    int value = 0;
    (void)sem_getvalue(&workers->jobs, &value); /* on Linux it is never negative */
    return (unsigned)value + workers->n_waiting;
}

/* The number of jobs that hang has changed. */
static void hanging_changed(struct workers *workers)
{
    threads_adjust(workers);
    waiting_release(workers);
    if (workers->changed)
        workers->changed(workers->changed_context);
}

static void work_wait(struct workers *workers, struct work *work)
{
    work->waits = true;
    atomic_store(&work->stay, false);
    atomic_store(&work->stayed, false);
    TAILQ_INSERT_TAIL(&workers->waiting, work, link);
    workers->n_waiting++;
}

/* A job has come back. Returns false if it was not begun, and waits. */
static bool work_returned(struct workers *workers, struct work *work)
{
    TAILQ_REMOVE(&workers->running, work, link);
    if (atomic_load(&work->stayed)) {
        work_wait(workers, work);
        waiting_release(workers); /* what it stays for may be over by now */
        return false;
    }
    work->file_hangs = false;
    if (work->hangs) {
        work->hangs = false;
        workers->n_hanging--;
        hanging_changed(workers);
    }
    return true;
}

/* Whether the thread waits for something else than a processor. On a busy machine it may be without one for long. */
static bool sleeps(int thread)
{
    char path[64], text[256];
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *name_ends = strrchr(text, ')'); /* then a blank and the state */
    return !name_ends || strlen(name_ends) < 3 || name_ends[2] != 'R';
}

static bool is_over(uint64_t since, uint64_t now, uint64_t patience)
{
    return since > 0 && patience > 0 && now > since && now - since > patience;
}

static bool look_at(struct workers *workers, struct work *work, uint64_t now)
{
    const uint64_t since = atomic_load(&work->in_file), device = atomic_load(&work->in_device);
    const bool file_hangs =
        since > 0 && now > since && now - since > WORKER_HANG_NS && sleeps(atomic_load(&work->thread));
    const bool hangs = file_hangs || is_over(device, now, workers->device_patience);
    if (hangs == work->hangs && file_hangs == work->file_hangs)
        return false;
    if (hangs != work->hangs)
        workers->n_hanging += hangs ? 1 : -1u;
    const bool told = work->file_hangs;
    work->hangs = hangs;
    work->file_hangs = file_hangs;
    if (file_hangs && !told)
        log_client(LOG_LEVEL_WARNING, "uid=%u a file does not answer: inode %" PRIu64 " of device %#" PRIx64,
                   (unsigned)work->reads.uid, work->reads.ino, work->reads.dev);
    return true;
}

static void look(uv_timer_t *timer)
{
    struct workers *workers = timer->data;
    const uint64_t now = uv_hrtime();
    bool changed = false;
    struct work *work;
    TAILQ_FOREACH(work, &workers->running, link)
    {
        changed |= look_at(workers, work, now);
    }
    if (changed) {
        TAILQ_FOREACH(work, &workers->running, link)
        {
            if (atomic_load(&work->in_file) == 0 && work_must_wait(workers, work))
                atomic_store(&work->stay, true); /* if it has begun already, this does nothing */
        }
        hanging_changed(workers);
    } else
        threads_adjust(workers);
    if (TAILQ_EMPTY(&workers->running) && TAILQ_EMPTY(&workers->waiting))
        uv_timer_stop(timer);
}

static void work_begin(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                       void (*done)(struct work *work))
{
    work->workers = workers;
    work->data = data;
    work->run = run;
    work->done = done;
    workers->n_jobs++;
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

static void queue(struct workers *workers, struct work *work)
{
    work->hangs = work->file_hangs = work->waits = false;
    atomic_init(&work->stay, false);
    atomic_init(&work->stayed, false);
    atomic_init(&work->in_file, 0);
    atomic_init(&work->in_device, 0);
    if (!uv_is_active((uv_handle_t *)&workers->look))
        uv_timer_start(&workers->look, look, LOOK_MS, LOOK_MS);
    if (work_must_wait(workers, work)) {
        work_wait(workers, work);
        return;
    }
    TAILQ_INSERT_TAIL(&workers->running, work, link);
    work_push(workers, work);
}

void worker_queue(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work))
{
    work->uses_files = work->always = false;
    work_begin(workers, work, data, run, done);
    queue(workers, work);
}

void worker_queue_reading(struct workers *workers, struct work *work, const struct work_reads *reads, void *data,
                          void (*run)(struct work *work), void (*done)(struct work *work))
{
    work->reads = *reads;
    work->uses_files = true;
    work->always = false;
    work_begin(workers, work, data, run, done);
    queue(workers, work);
}

void worker_queue_always(struct workers *workers, struct work *work, uid_t uid, void *data,
                         void (*run)(struct work *work), void (*done)(struct work *work))
{
    work->reads = (struct work_reads){.uid = uid};
    work->uses_files = work->always = true;
    work_begin(workers, work, data, run, done);
    queue(workers, work);
}

/* --- the end --- */

void workers_watch(struct workers *workers, void (*changed)(void *context), void *context)
{
    workers->changed = changed;
    workers->changed_context = context;
}

void workers_set_device_patience(struct workers *workers, uint64_t patience)
{
    workers->device_patience = patience;
}

bool workers_are_stuck(const struct workers *workers)
{
    return workers->n_jobs > 0 && workers->n_jobs <= workers->n_hanging + workers->n_waiting;
}

void workers_end(struct workers *workers, void (*ended)(void *context), void *context)
{
    workers->ended = ended;
    workers->ended_context = context;
    atomic_store(&workers->ending, true);
    for (unsigned i = 0; i < workers->n_threads; i++)
        sem_post(&workers->jobs);
    workers_end_if_done(workers);
}

/* --- for workers --- */

void worker_file_begin(void)
{
    if (!current || !current->uses_files || depth++ > 0)
        return;
    atomic_store(&current->thread, gettid());
    atomic_store(&current->in_file, uv_hrtime());
}

void worker_file_end(void)
{
    if (current && current->uses_files && --depth == 0)
        atomic_store(&current->in_file, 0);
}

void worker_device_begin(void)
{
    if (current && device_depth++ == 0)
        atomic_store(&current->in_device, uv_hrtime());
}

void worker_device_end(void)
{
    if (current && --device_depth == 0)
        atomic_store(&current->in_device, 0);
}

unsigned worker_number(void)
{
    static unsigned count;
    static __thread unsigned number; /* plus one */
    if (number == 0)
        number = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    return number - 1;
}

void worker_step_back(void)
{
    static __thread bool done;
    if (done)
        return;
    done = true;
    /* A SCHED_BATCH thread that wakes up does not preempt the thread that runs. */
    (void)sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
    /* On Linux a nice value belongs to the thread. This fails only if the thread has a higher one already. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
}

void *worker_scratch(void)
{
    static __thread _Alignas(4096) unsigned char scratch[WORKER_SCRATCH];
    return scratch;
}
