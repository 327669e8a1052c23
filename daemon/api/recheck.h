/* Reads the access facts of a model's files again, on a worker, before a user attaches who is neither the model's user
 * nor trusted: modes and owners may have changed since the facts were read.
 *
 * At most one worker at a time does this for a model. So a file system that does not answer blocks only one worker.
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/model/registry.h"
#include "daemon/wire/call.h"

#include <sys/queue.h>

struct recheck;

struct rechecks {
    struct core *core;
    struct registry *registry;
    TAILQ_HEAD(, recheck) list;
};

/* The owner has set the members before `list`. */
void rechecks_init(struct rechecks *rechecks);

/* Reads the facts again, then calls `then` with the model, or with NULL if the model is gone. `call` waits until then.
 * If the call is abandoned, or was failed here because memory is short, `then` is not called. */
void recheck_begin(struct rechecks *rechecks, struct model *model, struct call *call,
                   void (*then)(void *context, struct model *model, struct call *call), void *context);
