/* Reads the access facts of a model's files again, on a worker: modes and owners may have changed since the facts were
 * read. That is done before a user attaches who is neither the model's user nor trusted, before such a user hears that
 * there is no model of a name, and when the daemon is asked to look at all models.
 *
 * At most one worker at a time does this for a model. So a file system that does not answer blocks only one worker.
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/model/registry.h"
#include "daemon/session/events.h"
#include "daemon/wire/call.h"

#include <sys/queue.h>

struct recheck;

struct rechecks {
    struct core *core;
    struct registry *registry;
    struct events *events;
    TAILQ_HEAD(, recheck) list;
    uint64_t looked; /* id of the model whose turn it is in rechecks_look() */
    bool looking;
    bool again; /* another look was asked for during this one */
};

/* Goes on with a call. id: of the model whose facts were read, or 0. model: that model; NULL if it is gone. */
typedef void (*recheck_then)(void *context, uint64_t id, struct model *model, struct call *call);

/* The owner has set the members before `list`. */
void rechecks_init(struct rechecks *rechecks);

/* Reads the facts again, then calls `then`. `call` waits until then. If the call is abandoned, or was failed here
 * because memory is short, `then` is not called. model: NULL reads nothing, but goes by way of a worker all the same:
 * only the time to read the facts is left out. */
void recheck_begin(struct rechecks *rechecks, struct model *model, struct call *call, recheck_then then, void *context);

/* Reads the facts of all models again, one model after the other. If this is under way, it is done once more after. */
void rechecks_look(struct rechecks *rechecks);
