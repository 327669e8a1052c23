/* Asks all drivers how much memory is free, without blocking the loop.
 *
 * A thread of its own asks the drivers. The workers may all be busy reading slow files, and a client that wants to know
 * the state must not wait for them. If there are several requests at the same time, each driver is asked once for all
 * of them.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"

#include <sys/queue.h>

struct survey;

/* A request. It must not move in memory until `done` is called, or until survey_forget(). */
struct survey_request {
    void (*done)(struct survey_request *request); /* called when the devices' `reach` is up to date */
    TAILQ_ENTRY(survey_request) link;
};

/* Starts the thread. The devices may be added later. 0 or a negative errno. */
int survey_new(struct core *core, struct devices *devices, struct survey **ret);

/* Calls `done` once, when the drivers have answered a question that was asked after this call. */
void survey_ask(struct survey *survey, struct survey_request *request);

/* Cancels a request whose `done` was not called yet. */
void survey_forget(struct survey *survey, struct survey_request *request);

/* Whether a driver has not answered a question that was asked before that time, by uv_hrtime(). */
bool survey_hangs(const struct survey *survey, uint64_t asked_before);

/* A driver does not return: whoever waits for the survey that is running is told what was known before, and the next
 * one has another thread. */
void survey_give_up(struct survey *survey);

/* Ends the thread. No survey may be running. NULL is allowed. */
void survey_free(struct survey *survey);

/* Stores the driver's answer in the device. reach: the result of device_survey(); 0: it failed, and the old value
 * stays. */
void survey_note(struct device *device, uint64_t reach);
