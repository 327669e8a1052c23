#include "daemon/base/worker_threads.h"

#include "daemon/base/worker.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum spare_state { SPARE_NONE, SPARE_RUNS, SPARE_ENDED /* it is to be joined */ };

struct spare {
    struct worker_threads *threads;
    uv_thread_t id;
    enum spare_state state;
    struct letter letter; /* tells the loop that it has ended */
};

struct worker_threads {
    sem_t jobs;           /* queued ones, and one for each thread that is to end; sem_post() never waits */
    struct work *last;    /* atomic: the job queued last; `next` leads to the one before it */
    pthread_mutex_t lock; /* guards `first`; workers only */
    struct work *first;   /* jobs in order, taken over from `last` */
    void (*run)(struct work *work);
    struct mailbox *mailbox;
    atomic_uint excess; /* spare threads that are to end */

    /* Loop: */
    uv_work_t *requests; /* one for each regular thread */
    unsigned n, left;    /* regular threads, and how many of them have not ended */
    struct spare *spares;
    unsigned most_spares, n_spares;
    unsigned n_leaving; /* of n_spares: were told to end */
    void (*ended)(void *context);
    void *context;
};

int worker_threads_new(struct mailbox *mailbox, void (*run)(struct work *work), struct worker_threads **ret)
{
    struct worker_threads *threads = calloc(1, sizeof(*threads));
    if (!threads)
        return -ENOMEM;
    sem_init(&threads->jobs, 0, 0); /* fails only for a value that is too large */
    pthread_mutex_init(&threads->lock, NULL);
    threads->mailbox = mailbox;
    threads->run = run;
    *ret = threads;
    return 0;
}

/* The job queued first. NULL: there is none, and the thread is to end. */
static struct work *take(struct worker_threads *threads)
{
    pthread_mutex_lock(&threads->lock);
    if (!threads->first) {
        struct work *work = __atomic_exchange_n(&threads->last, NULL, __ATOMIC_ACQUIRE);
        while (work) {
            struct work *before = work->next;
            work->next = threads->first;
            threads->first = work;
            work = before;
        }
    }
    struct work *work = threads->first;
    if (work)
        threads->first = work->next;
    pthread_mutex_unlock(&threads->lock);
    return work;
}

/* Runs the next job. False if there is none, and the thread is to end. */
static bool run_next(struct worker_threads *threads)
{
    while (sem_wait(&threads->jobs) < 0)
        ; /* a signal */
    struct work *work = take(threads);
    if (work)
        threads->run(work);
    return work;
}

static void threads_end_if_done(struct worker_threads *threads)
{
    if (!threads->ended || threads->left > 0 || threads->n_spares > 0)
        return;
    for (unsigned i = 0; i < threads->most_spares; i++)
        if (threads->spares[i].state == SPARE_ENDED)
            uv_thread_join(&threads->spares[i].id);
    void (*ended)(void *) = threads->ended;
    void *context = threads->context;
    sem_destroy(&threads->jobs);
    pthread_mutex_destroy(&threads->lock);
    free(threads->requests);
    free(threads->spares);
    free(threads);
    ended(context);
}

/* --- regular threads --- */

static void regular_run(uv_work_t *request)
{
    while (run_next(request->data))
        ;
}

static void regular_ended(uv_work_t *request, int status)
{
    (void)status;
    struct worker_threads *threads = request->data;
    threads->left--;
    threads_end_if_done(threads);
}

int worker_threads_begin(struct worker_threads *threads, uv_loop_t *loop, unsigned n, unsigned most_spares)
{
    threads->requests = calloc(n, sizeof(*threads->requests));
    threads->spares = calloc(most_spares, sizeof(*threads->spares));
    if (!threads->requests || !threads->spares)
        return -ENOMEM;
    threads->most_spares = most_spares;
    threads->n = threads->left = n;
    for (unsigned i = 0; i < n; i++) {
        threads->requests[i].data = threads;
        int r = uv_queue_work(loop, &threads->requests[i], regular_run, regular_ended);
        assert(r == 0); /* it fails only for a request without a function */
        (void)r;
    }
    return 0;
}

/* --- spare threads --- */

static bool is_excess(struct worker_threads *threads)
{
    unsigned excess = atomic_load(&threads->excess);
    while (excess > 0)
        if (atomic_compare_exchange_weak(&threads->excess, &excess, excess - 1))
            return true;
    return false;
}

static void spare_run(void *argument)
{
    struct spare *spare = argument;
    while (!is_excess(spare->threads) && run_next(spare->threads))
        ;
    mailbox_post(spare->threads->mailbox, &spare->letter);
}

/* The thread is about to end. It is joined later: the loop would wait for it. */
static void spare_ended(struct letter *letter)
{
    struct spare *spare = (struct spare *)((char *)letter - offsetof(struct spare, letter));
    struct worker_threads *threads = spare->threads;
    spare->state = SPARE_ENDED;
    threads->n_spares--;
    if (threads->n_leaving > 0)
        threads->n_leaving--;
    threads_end_if_done(threads);
}

/* There is a place for one. False if the system has no thread left. */
static bool spare_begin(struct worker_threads *threads)
{
    struct spare *spare = threads->spares;
    while (spare->state == SPARE_RUNS)
        spare++;
    if (spare->state == SPARE_ENDED)
        uv_thread_join(&spare->id);
    *spare = (struct spare){.threads = threads, .letter.deliver = spare_ended};
    if (uv_thread_create(&spare->id, spare_run, spare) < 0)
        return false;
    spare->state = SPARE_RUNS;
    threads->n_spares++;
    return true;
}

void worker_threads_set_spares(struct worker_threads *threads, unsigned n)
{
    if (threads->ended)
        return; /* a new thread would take what tells another one to end */
    const unsigned wanted = n < threads->most_spares ? n : threads->most_spares;
    while (threads->n_spares - threads->n_leaving < wanted && is_excess(threads))
        threads->n_leaving--; /* it was told, and has not taken it up yet */
    while (threads->n_spares - threads->n_leaving < wanted && threads->n_spares < threads->most_spares)
        if (!spare_begin(threads))
            break;
    while (threads->n_spares - threads->n_leaving > wanted) {
        threads->n_leaving++;
        atomic_fetch_add(&threads->excess, 1);
    }
}

/* --- jobs --- */

void worker_threads_push(struct worker_threads *threads, struct work *work)
{
    work->next = __atomic_load_n(&threads->last, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&threads->last, &work->next, work, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    sem_post(&threads->jobs);
}

unsigned worker_threads_queued(struct worker_threads *threads)
{
    int value = 0;
    (void)sem_getvalue(&threads->jobs, &value); /* on Linux it is never negative */
    return (unsigned)value;
}

void worker_threads_end(struct worker_threads *threads, void (*ended)(void *context), void *context)
{
    threads->ended = ended;
    threads->context = context;
    for (unsigned i = 0; i < threads->n + threads->n_spares; i++)
        sem_post(&threads->jobs);
    threads_end_if_done(threads);
}
