/* Shares a device's staging slots between the loads that are under way: whoever got the fewest bytes gets the next
 * slot.
 *
 * Workers never wait for a slot and slots never wait for a load, so nothing can deadlock; a load that is cancelled is
 * simply not given another.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/device/staging.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* What takes slots: a load. */
struct consumer {
    /* Uses a slot that is now its own, to be given back with scheduler_give(). Returns the bytes of the bus that this
     * takes; or 0 if it wants no more slots: it is out of the schedule then and did not take this one. */
    uint64_t (*use)(struct consumer *consumer, struct slot *slot);
    uint64_t served; /* the scheduler's */
    bool scheduled;
    TAILQ_ENTRY(consumer) link;
};

struct scheduler;

/* Shares the slots of `device`, whose staging exists. -ENOMEM. */
int scheduler_new(struct device *device, struct scheduler **ret);

/* NULL is fine. No consumer is in the schedule. */
void scheduler_free(struct scheduler *scheduler);

/* Puts a consumer into the schedule, not ahead of those who are in it. It may be used at once. */
void scheduler_add(struct scheduler *scheduler, struct consumer *consumer);

/* Takes it out. Fine if it is not in. */
void scheduler_remove(struct scheduler *scheduler, struct consumer *consumer);

/* Gives a slot back, for the next one. */
void scheduler_give(struct scheduler *scheduler, struct slot *slot);
