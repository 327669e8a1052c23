/* Answers Attach: grants a lease, and tells the client where the model's memory is.
 *
 * Loop thread only. */
#pragma once

struct call;
struct events;
struct model;
struct registry;

#include <cjson/cJSON.h>

/* Answers a call that wants a lease: with one, if the model is resident, or with the reason why not. `reply` is
 * consumed: what the answer has beside a lease's; NULL: nothing. */
void attach_grant(struct registry *registry, struct events *events, struct model *model, struct call *call,
                  cJSON *reply);
