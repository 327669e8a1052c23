#include "daemon/base/worker.h"

#include <assert.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

/* A worker's share of a processor that it has to divide with the loop: about a tenth (see sched(7)). */
#define WORKER_NICE 10

void worker_queue(uv_loop_t *loop, uv_work_t *work, void *data, uv_work_cb run, uv_after_work_cb done)
{
    work->data = data;
    int r = uv_queue_work(loop, work, run, done);
    assert(r == 0); /* it only refuses a job without a function */
    (void)r;
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
    /* A thread that computes does not push others off a processor when it wakes. */
    (void)sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
    /* On Linux this is the thread's alone. It cannot fail but for a thread that is niced already. */
    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
}

void *worker_scratch(void)
{
    static __thread _Alignas(4096) unsigned char scratch[WORKER_SCRATCH];
    return scratch;
}
