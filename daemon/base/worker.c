#include "daemon/base/worker.h"

#include <assert.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

/* At this nice value a worker gets about a tenth of a processor that it shares with the loop (see sched(7)). */
#define WORKER_NICE 10

void worker_queue(uv_loop_t *loop, uv_work_t *work, void *data, uv_work_cb run, uv_after_work_cb done)
{
    work->data = data;
    int r = uv_queue_work(loop, work, run, done);
    assert(r == 0); /* it fails only for a job without a function */
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
