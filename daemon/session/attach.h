/* Answers Attach: grants a lease, and tells the client where the model's memory is.
 *
 * Loop thread only. */
#pragma once

struct call;
struct events;
struct model;
struct registry;

#include <cjson/cJSON.h>

/* Answers a call that wants a lease: with a lease if the model is resident, else with an error. reply: further members
 * of the answer, or NULL; it is consumed. */
void attach_grant(struct registry *registry, struct events *events, struct model *model, struct call *call,
                  cJSON *reply);

/* The same for a client that has the memory mapped already: the answer has the lease and the model. */
void attach_again(struct registry *registry, struct events *events, struct model *model, struct call *call);
