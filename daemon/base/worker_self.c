#include "daemon/base/worker_self.h"

#include <sched.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

/* At this nice value a worker gets about a tenth of a processor that it shares with the loop (see sched(7)). */
#define WORKER_NICE 10

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
