#include "daemon/base/worker.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

/* At this nice value a worker gets about a tenth of a processor that it shares with the loop (see sched(7)). */
#define WORKER_NICE 10

struct workers {
    sem_t jobs;           /* queued ones, and one for each worker that is to end; sem_post() never waits */
    struct work *last;    /* atomic: the job queued last; `next` leads to the one before it */
    pthread_mutex_t lock; /* guards `first`; workers only */
    struct work *first;   /* jobs in order, taken over from `last` */
    struct mailbox *mailbox;
    uv_work_t *requests; /* one for each thread */
    unsigned n;
    unsigned left; /* threads that have not ended */
    void (*ended)(void *context);
    void *context;
};

int workers_new(struct mailbox *mailbox, struct workers **ret)
{
    struct workers *workers = calloc(1, sizeof(*workers));
    if (!workers)
        return -ENOMEM;
    sem_init(&workers->jobs, 0, 0); /* fails only for a value that is too large */
    pthread_mutex_init(&workers->lock, NULL);
    workers->mailbox = mailbox;
    *ret = workers;
    return 0;
}

static void workers_free(struct workers *workers)
{
    sem_destroy(&workers->jobs);
    pthread_mutex_destroy(&workers->lock);
    free(workers->requests);
    free(workers);
}

/* The job queued first. NULL: there is none, and the worker is to end. */
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

static void deliver(struct letter *letter)
{
    struct work *work = (struct work *)((char *)letter - offsetof(struct work, letter));
    work->done(work);
}

static void worker_run(uv_work_t *request)
{
    struct workers *workers = request->data;
    for (;;) {
        while (sem_wait(&workers->jobs) < 0)
            ; /* a signal */
        struct work *work = take(workers);
        if (!work)
            return;
        work->run(work);
        work->letter.deliver = deliver;
        mailbox_post(workers->mailbox, &work->letter);
    }
}

static void worker_ended(uv_work_t *request, int status)
{
    (void)status;
    struct workers *workers = request->data;
    if (--workers->left > 0)
        return;
    void (*ended)(void *) = workers->ended;
    void *context = workers->context;
    workers_free(workers);
    ended(context);
}

int workers_begin(struct workers *workers, uv_loop_t *loop, unsigned n)
{
    workers->requests = calloc(n, sizeof(*workers->requests));
    if (!workers->requests)
        return -ENOMEM;
    workers->n = workers->left = n;
    for (unsigned i = 0; i < n; i++) {
        workers->requests[i].data = workers;
        int r = uv_queue_work(loop, &workers->requests[i], worker_run, worker_ended);
        assert(r == 0); /* it fails only for a request without a function */
        (void)r;
    }
    return 0;
}

void workers_end(struct workers *workers, void (*ended)(void *context), void *context)
{
    if (workers->n == 0) { /* none was begun */
        workers_free(workers);
        ended(context);
        return;
    }
    workers->ended = ended;
    workers->context = context;
    for (unsigned i = 0; i < workers->n; i++)
        sem_post(&workers->jobs);
}

void worker_queue(struct workers *workers, struct work *work, void *data, void (*run)(struct work *work),
                  void (*done)(struct work *work))
{
    work->data = data;
    work->run = run;
    work->done = done;
    work->next = __atomic_load_n(&workers->last, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&workers->last, &work->next, work, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    sem_post(&workers->jobs);
}

unsigned workers_waiting(struct workers *workers)
{
    int value = 0;
    (void)sem_getvalue(&workers->jobs, &value); /* on Linux it is never negative */
    return (unsigned)value;
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
