/* Asks all drivers what they have free, without blocking the loop.
 *
 * A thread of its own asks, and no worker: these may all be reading files that are slow to come, and whoever wants to
 * know why is not to wait for them. However many ask at once, drivers are asked once for all of them.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"

#include <sys/queue.h>

struct survey;

/* Somebody who wants to know. Stays where it is until `done`, or until it is forgotten. */
struct survey_request {
    void (*done)(struct survey_request *request); /* the devices' `reach` is new */
    TAILQ_ENTRY(survey_request) link;
};

/* Starts the thread. The devices may be added later. 0 or a negative errno. */
int survey_new(struct core *core, struct devices *devices, struct survey **ret);

/* Calls `done`, once, for drivers that were asked after this. */
void survey_ask(struct survey *survey, struct survey_request *request);

/* The request, which is not done, is not wanted any more. */
void survey_forget(struct survey *survey, struct survey_request *request);

/* Ends the thread. No job is under way. NULL is fine. */
void survey_free(struct survey *survey);

/* Takes what a driver said into the device: what device_survey() gave, 0: it failed. */
void survey_note(struct device *device, uint64_t reach);
