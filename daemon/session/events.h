/* Tells those who watch what happens to models.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"
#include "daemon/model/model.h"

struct events;

/* -ENOMEM. */
int events_new(struct events **ret);

/* Fails what is still watched with ShuttingDown. NULL is fine. */
void events_free(struct events *events);

/* The call, which needs `more`, gets every event from now on, until its connection closes. `first` is its first reply
 * and is consumed. */
void events_watch(struct events *events, struct call *call, cJSON *first);

/* event: "loading", "resident", "failed", ... error: a sentence, or NULL. events may be NULL: nobody
 * watches. */
void events_emit(struct events *events, const char *event, const struct model *model, const char *error);
