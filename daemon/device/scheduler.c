#include "daemon/device/scheduler.h"

#include <errno.h>
#include <stdlib.h>

struct scheduler {
    struct device *device;
    TAILQ_HEAD(, consumer) consumers;
    uint64_t served; /* bytes of the consumer that was served last; a new one starts there if there is no other */
    bool running;
};

int scheduler_new(struct device *device, struct scheduler **ret)
{
    struct scheduler *scheduler = calloc(1, sizeof(*scheduler));
    if (!scheduler)
        return -ENOMEM;
    scheduler->device = device;
    TAILQ_INIT(&scheduler->consumers);
    *ret = scheduler;
    return 0;
}

void scheduler_free(struct scheduler *scheduler)
{
    free(scheduler);
}

static struct consumer *scheduler_next(struct scheduler *scheduler)
{
    struct consumer *consumer, *least = NULL;
    TAILQ_FOREACH(consumer, &scheduler->consumers, link)
    {
        if (!least || consumer->served < least->served)
            least = consumer;
    }
    return least;
}

static void scheduler_run(struct scheduler *scheduler)
{
    if (scheduler->running)
        return; /* called by a consumer's use(), which gave a slot back */
    scheduler->running = true;
    struct consumer *consumer;
    while ((consumer = scheduler_next(scheduler))) {
        struct slot *slot = staging_take(scheduler->device->staging);
        if (!slot)
            break;
        scheduler->served = consumer->served;
        uint64_t bytes = consumer->use(consumer, slot);
        if (bytes == 0) {
            scheduler_remove(scheduler, consumer);
            staging_give(scheduler->device->staging, slot);
        } else
            consumer->served += bytes;
    }
    scheduler->running = false;
}

void scheduler_add(struct scheduler *scheduler, struct consumer *consumer)
{
    struct consumer *least = scheduler_next(scheduler);
    consumer->served = least ? least->served : scheduler->served;
    consumer->scheduled = true;
    TAILQ_INSERT_TAIL(&scheduler->consumers, consumer, link);
    scheduler_run(scheduler);
}

void scheduler_remove(struct scheduler *scheduler, struct consumer *consumer)
{
    if (!consumer->scheduled)
        return;
    consumer->scheduled = false;
    TAILQ_REMOVE(&scheduler->consumers, consumer, link);
}

void scheduler_more(struct scheduler *scheduler)
{
    scheduler_run(scheduler);
}

void scheduler_give(struct scheduler *scheduler, struct slot *slot)
{
    staging_give(scheduler->device->staging, slot);
    scheduler_run(scheduler);
}
