/* Looks at a model's files again, on a worker, for whoever wants to attach and is neither its user nor root nor the
 * daemon's own user: modes and owners may have changed since.
 *
 * One worker at a time looks at a model: a file system that does not answer costs no more than that. Loop thread only.
 */
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

/* `rechecks` has its first part set. */
void rechecks_init(struct rechecks *rechecks);

/* Calls `then` when the facts are newer than this call: with the model, or with NULL if that is gone. The call waits
 * meanwhile: if it is abandoned, or was failed because memory is short, nothing more is heard of it. */
void recheck_begin(struct rechecks *rechecks, struct model *model, struct call *call,
                   void (*then)(void *context, struct model *model, struct call *call), void *context);
