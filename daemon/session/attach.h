/* Answers Attach: grants a lease, and tells the client where the model's memory is.
 *
 * Loop thread only. */
#pragma once

struct call;
struct events;
struct model;
struct registry;

/* Answers an Attach call: with a lease, if the model is resident, or with the reason why not. */
void attach_grant(struct registry *registry, struct events *events, struct model *model, struct call *call);
