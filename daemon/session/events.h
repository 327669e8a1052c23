/* Watch: tells clients what happens to models.
 *
 * Loop thread only. */
#pragma once

#include "daemon/model/model.h"
#include "daemon/wire/conn.h"

struct events;

/* -ENOMEM. */
int events_new(struct events **ret);

/* Fails all Watch calls with ShuttingDown. Nothing is sent from then on. */
void events_end(struct events *events);

/* After events_end(). NULL is fine. */
void events_free(struct events *events);

/* The call, which needs `more`, gets every event from now on, until its connection closes. `first` is its first reply
 * and is consumed. */
void events_watch(struct events *events, struct call *call, cJSON *first);

/* The model's file has other bytes by now: the model counts as changed. It is told once. */
void events_changed(struct events *events, struct model *model);

/* event: "loading", "resident", "failed", ... error: a sentence, or NULL. */
void events_emit(struct events *events, const char *event, const struct model *model, const char *error);
