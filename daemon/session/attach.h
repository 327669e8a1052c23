/* Answers Attach: grants a lease, and tells the client where the model's memory is.
 *
 * Loop thread only. */
#pragma once

struct call;
struct device_export;
struct events;
struct model;
struct registry;

#include <cjson/cJSON.h>
#include <stddef.h>

/* Answers a call that wants a lease: with a lease if the model is resident, else with an error. reply: further members
 * of the answer, or NULL; it is consumed. */
void attach_grant(struct registry *registry, struct events *events, struct model *model, struct call *call,
                  cJSON *reply);

/* The same for a client that has the memory mapped already: the answer has the lease and the model. */
void attach_again(struct registry *registry, struct events *events, struct model *model, struct call *call);

/* Adds to a reply how the client can map the memory: with a descriptor that is sent beside it, or a handle. Writes the
 * descriptor to `fds`, and returns how many there are: 0 or 1. */
size_t attach_export(cJSON *reply, const struct device_export *export, int *fds);
