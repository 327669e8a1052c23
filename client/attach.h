/* Attaching to a model: the call, the lease, and the mapping of the memory. What can be asked of an attached model is
 * in rocmforge.h. */
#pragma once

#include "client/call.h"
#include "client/rocmforge.h"

/* Makes a call that grants a lease, Attach or Load, and maps the model's memory. `call`: its method, parameters,
 * descriptors and `more`. Every reply goes to `reply` too, without descriptors, and the progress in it to `progress`;
 * both may be NULL. Errors are those of rf_attach(). */
int model_attach(rf_client *client, struct call call, rf_reply_fn *reply, rf_progress_fn *progress, void *context,
                 rf_model **ret);

/* Unmaps the memory and frees the model. Sends nothing to the daemon: its lease must have ended, or end with the
 * connection. */
void model_free(rf_model *model);

/* The same for a call whose last reply may be another than a lease. `other` gets that reply first. It returns 0: the
 * reply grants a lease; 1: it was the other one, and was taken, and then *ret becomes NULL; or a negative errno. */
int model_attach_or(rf_client *client, struct call call, rf_progress_fn *progress, void *context,
                    int (*other)(void *other_context, cJSON **parameters, struct frame_message *message),
                    void *other_context, rf_model **ret);
