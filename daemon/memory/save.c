#include "daemon/memory/save.h"

#include "daemon/base/worker.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Bytes that a worker copies at once. */
#define PIECE_BYTES ((uint64_t)16 << 20)

/* More helpers do not make it faster: docs/performance.md. */
#define HELPERS_MAX 7u

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct helper {
    struct save *save;
    bool over; /* it found no piece */
    struct work work;
};

struct save {
    struct core *core;
    struct model *model;
    struct device *host;
    bool lock_memory;
    struct letter letter; /* save_run() has begun */

    /* Workers. */
    pthread_mutex_t lock;
    pthread_cond_t idle;
    uint8_t *copy;
    uint64_t bytes;
    uint64_t next;    /* under the lock, as all that follows: where the next piece begins */
    unsigned copying; /* pieces that are being copied now */
    bool failed;
    bool lost;

    /* Loop. */
    unsigned left; /* the owner, the letter, and helpers that will come back */
    struct helper helpers[HELPERS_MAX];
};

static bool take(struct save *save, uint64_t *ret_at)
{
    pthread_mutex_lock(&save->lock);
    const bool any = !save->failed && save->next < save->bytes;
    if (any) {
        *ret_at = save->next;
        save->next += min_u64(PIECE_BYTES, save->bytes - save->next);
        save->copying++;
    }
    pthread_mutex_unlock(&save->lock);
    return any;
}

static void copied(struct save *save, int status)
{
    pthread_mutex_lock(&save->lock);
    save->failed = save->failed || status < 0;
    save->lost = save->lost || status == -ENODEV;
    if (--save->copying == 0)
        pthread_cond_signal(&save->idle);
    pthread_mutex_unlock(&save->lock);
}

/* Returns false if none is left. */
static bool copy_piece(struct save *save)
{
    uint64_t at;
    if (!take(save, &at))
        return false;
    const size_t n = min_u64(PIECE_BYTES, save->bytes - at);
    struct device_fault unused;
    /* Lets the kernel provide the pages before the device is read, because of some devices only one worker can read at
     * a time. If the kernel cannot do this, it provides each page when it is first written to. */
    (void)madvise(save->copy + at, n, MADV_POPULATE_WRITE);
    copied(save, device_arena_read(save->model->device, save->model->arena, at, save->copy + at, n, &unused));
    return true;
}

static void give_up_one(struct save *save)
{
    assert(save->left > 0);
    if (--save->left > 0)
        return;
    struct core *core = save->core;
    pthread_mutex_destroy(&save->lock);
    pthread_cond_destroy(&save->idle);
    free(save);
    core_job_end(core);
}

static void helper_work(struct work *work)
{
    struct helper *helper = work->data;
    worker_step_back();
    helper->over = !copy_piece(helper->save);
}

static void helper_worked(struct work *work)
{
    struct helper *helper = work->data;
    if (helper->over)
        give_up_one(helper->save);
    else
        worker_queue(helper->save->core->queue, work, helper, helper_work, helper_worked);
}

/* The memory is there: the others can begin. */
static void call_helpers(struct letter *letter)
{
    struct save *save = (struct save *)((char *)letter - offsetof(struct save, letter));
    /* Together with the saver itself, all workers but one: loads go on meanwhile. */
    const unsigned n = save->core->workers > 2 ? (unsigned)min_u64(save->core->workers - 2, HELPERS_MAX) : 0;
    save->left += n;
    for (unsigned i = 0; i < n; i++) {
        struct helper *helper = &save->helpers[i];
        helper->save = save;
        worker_queue(save->core->queue, &helper->work, helper, helper_work, helper_worked);
    }
    give_up_one(save);
}

struct save *save_new(struct core *core, struct model *model, struct device *host, bool lock)
{
    struct save *save = calloc(1, sizeof(*save));
    if (!save)
        return NULL;
    save->core = core;
    save->model = model;
    save->host = host;
    save->lock_memory = lock;
    save->bytes = model->plan->arena_bytes;
    save->letter.deliver = call_helpers;
    save->left = 2;
    pthread_mutex_init(&save->lock, NULL);
    pthread_cond_init(&save->idle, NULL);
    core_job_begin(core);
    return save;
}

/* NULL: no memory. */
static uint8_t *take_memory(const struct save *save)
{
    uint64_t available;
    struct device_fault unused;
    if (device_memory_free(save->host, &available, &unused) == 0 && available < save->bytes)
        return NULL; /* a copy that is too large could make the kernel kill a process */
    uint8_t *copy = mmap(NULL, save->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    /* Each page when it comes, or one thread would take them all here. */
    if (save->lock_memory && mlock2(copy, save->bytes, MLOCK_ONFAULT) < 0) {
        munmap(copy, save->bytes);
        return NULL;
    }
    (void)madvise(copy, save->bytes, MADV_HUGEPAGE); /* small pages would take most of the time, one fault for each */
    return copy;
}

void *save_run(struct save *save, bool *ret_lost)
{
    save->copy = take_memory(save);
    save->failed = !save->copy; /* then helpers find nothing to do */
    mailbox_post(save->core->mailbox, &save->letter);
    while (copy_piece(save))
        ;
    pthread_mutex_lock(&save->lock);
    while (save->copying > 0)
        pthread_cond_wait(&save->idle, &save->lock);
    const bool failed = save->failed;
    *ret_lost = save->lost;
    pthread_mutex_unlock(&save->lock);
    if (failed && save->copy)
        munmap(save->copy, save->bytes);
    return failed ? NULL : save->copy;
}

void save_free(struct save *save)
{
    if (save)
        give_up_one(save);
}
