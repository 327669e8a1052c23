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

/* The call, which needs `more`, gets every event from now on, until its connection closes. `first` is its first reply,
 * with the models that its client sees in "models", and is consumed. */
void events_watch(struct events *events, struct call *call, cJSON *first);

/* The model's file has other bytes by now: the model counts as changed. It is told once. */
void events_changed(struct events *events, struct model *model);

/* Whether a file of the model was deleted. It is told when it becomes true; and as the next one, when it ends. */
void events_set_deleted(struct events *events, struct model *model, bool deleted);

/* The model was changed, and is no longer: its file has its bytes again. */
void events_restored(struct events *events, struct model *model);

/* Tells everybody who sees the model, and users who hold a lease on it. Who was told of the model before, and neither
 * sees it nor holds a lease now, gets the event "unloaded" instead, and none after it.
 *
 * event: "loading", "resident", "failed", ... error: a sentence, or NULL. */
void events_emit(struct events *events, const char *event, const struct model *model, const char *error);

/* Makes the model private, and tells of it as events_set_facts() does. */
void events_narrow(struct events *events, struct model *model);

/* The model gets new facts, or NULL: see model_set_facts(). Tells who does not see it any more, and the event "renamed"
 * if it lost names by this. */
void events_set_facts(struct events *events, struct model *model, struct access_facts *facts);
