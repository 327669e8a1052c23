/* Shares the staging slots of a device among the loads: the load that got the fewest bytes so far gets the next slot.
 *
 * A worker never waits for a slot, and a slot never waits for a load, so there is no deadlock. A load that is cancelled
 * gets no further slot.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/device/staging.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* Something that uses slots: a load. */
struct consumer {
    /* Takes over a slot, which it gives back later with scheduler_give(). Returns how many bytes this will move over
     * the bus. 0: it did not take the slot, wants no more slots, and is removed from the schedule. */
    uint64_t (*use)(struct consumer *consumer, struct slot *slot);
    uint64_t served; /* bytes so far; the scheduler's */
    bool scheduled;
    TAILQ_ENTRY(consumer) link;
};

struct scheduler;

/* Shares the slots of `device`, whose staging exists. -ENOMEM. */
int scheduler_new(struct device *device, struct scheduler **ret);

/* NULL is fine. No consumer is in the schedule. */
void scheduler_free(struct scheduler *scheduler);

/* Adds a consumer. It starts with as many bytes as the one that has the fewest. `use` may be called at once. */
void scheduler_add(struct scheduler *scheduler, struct consumer *consumer);

/* Removes a consumer. Does nothing if it was not added. */
void scheduler_remove(struct scheduler *scheduler, struct consumer *consumer);

/* There are more slots: consumers get them at once. */
void scheduler_more(struct scheduler *scheduler);

/* Gives a slot back. The next consumer gets it at once. */
void scheduler_give(struct scheduler *scheduler, struct slot *slot);
