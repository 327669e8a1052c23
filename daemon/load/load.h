/* A load: from the request to a resident model, or to an error.
 *
 *          ┌─────────────── cached ──┐
 *          │                         ▼
 *     IDENTIFYING ─▶ OPENING ─▶ RESERVING ◀▶ ALLOCATING ─▶ FILLING ─▶ SEALING ─▶ DONE
 *          │            │           │            │            │          │
 *     joined, refused   └───────────┴────────────┴── STOPPING ◀──────────┘
 *          │                                            │
 *          ▼                                            ├─ nothing was taken yet ─▶ DONE
 *        DONE                                       RELEASING ─▶ DONE
 *
 * IDENTIFYING, OPENING, ALLOCATING, SEALING and RELEASING each run one job on a worker. RESERVING waits until other
 * models are evicted, or waits in a queue until there is enough memory, after which it looks at the files again. If the
 * driver does not give memory that the ledger had reserved, ALLOCATING goes back to RESERVING, and more models are
 * evicted. FILLING has one fill for each slot that the scheduler gave it, and one job that publishes the model
 * (publication.h). ALLOCATING has some fills too: their slots are filled, and wait for the arena. STOPPING waits for
 * jobs and fills under way, and begins no new ones. The model enters the registry between IDENTIFYING and OPENING. If
 * the registry has a model of the same file already, the load ends there, and its calls join that model. A load of a
 * cached model goes on with RESERVING; if it fails, the model stays cached.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/load/loads.h"
#include "daemon/load/verify.h"
#include "daemon/model/model.h"
#include "daemon/session/waiters.h"
#include "daemon/wire/call.h"

#include <stdbool.h>
#include <stdint.h>

struct creation;
struct load;

/* When another model loses the name that this request asks for. It loses the name once the new model is resident. Each
 * value allows what the values before it allow. */
enum replace {
    REPLACE_STALE, /* if it is of the same path, the path has other bytes now, and it is neither in use nor pinned. If
                      the caller may not end it, the new model must not be hidden from users who see the old one */
    REPLACE_FILE,  /* also if it was loaded from the same path, and the caller may end it; for preloads */
    REPLACE_NAME,  /* also any other model that the caller may end */
};

struct load_request {
    const int *fds; /* open files, which the load takes over; NULL: it opens `path` */
    size_t n_fds;
    const char *path;            /* borrowed */
    const char *name;            /* NULL: the name is derived from the file's; borrowed */
    const struct forms *forms;   /* the load takes a reference */
    const struct layout *layout; /* the same */
    struct device_set among;     /* devices that the model may go to; at least one */
    bool decode_on_cpu;          /* even if the device has kernels for it */
    bool wait;                   /* answer when the model is resident; cancel the load when no call waits for it */
    bool lease;                  /* answer with a lease; only with `wait` */
    double wait_for_memory;      /* seconds for which it may wait in the queue; 0: it may not */
    struct peer *peer;           /* who asks; the load takes a reference */
    uid_t uid;                   /* the peer's */
    bool trusted; /* root or the daemon's own user: may load, by path, files that are not world-readable */
    bool pin;
    int64_t ttl; /* seconds; -1: for ever */
    enum access access;
    enum replace replace;
    struct creation *creation; /* set for Create (creation.h), NULL for Load; load_begin() takes it over */
    bool trace;                /* record the times of each step, for the answer */

    /* For loads without a call. Called once, when the load ends, which may be within load_begin(): with the model; or
     * with NULL and a sentence why it failed. */
    void (*done)(void *context, struct model *model, const char *why);
    void *context;
};

/* Begins a load. If the same model is on its way or resident, the load joins it. The call, unless NULL, is answered in
 * any case, now or later. The load counts in the user's quota while it is under way. */
void load_begin(struct loads *loads, const struct load_request *request, struct call *call);

/* Loads a model from its copy in host memory. The model is cached, or is being saved now. The call waits for the load,
 * and is answered as `kind` says. The load counts in the quota of the caller, not of the user who loaded the model. */
void load_restore(struct loads *loads, struct model *model, struct call *call, enum waiter_kind kind);

/* Lets a call wait for a load under way. */
void load_wait(struct load *load, struct call *call, enum waiter_kind kind);

/* Ends a load under way. All calls that wait for it fail with `error`. Its memory is freed when no fill writes to it
 * any more. `call`, unless NULL, is answered when the load has ended: with success if `error` is Cancelled. */
void load_end(struct load *load, enum wire_error error, struct call *call);

/* True if the load has failed or was cancelled, and is cleaning up. */
bool load_ends(const struct load *load);

/* The outcome of a load, as far as it depends on the models that are there. foresee.h tells it beforehand. */
enum load_verdict {
    LOAD_NEW,     /* a new model is loaded, if it fits */
    LOAD_JOIN,    /* the model is resident, or is being loaded */
    LOAD_RESTORE, /* the model is loaded from its copy in host memory, if it fits */
    LOAD_QUEUED,  /* OutOfDeviceMemory, unless the request may wait: the model is in the queue for memory */
    LOAD_BUSY,    /* ModelBusy: a model of the same file has the name, and is draining or lost */
    LOAD_TAKEN,   /* NameInUse: another model has the name */
    LOAD_DENIED,  /* PermissionDenied: the caller may not make the model public */
    LOAD_LIMITED, /* LimitExceeded: the model would have too many names or guests */
};

/* Whether the user who asks may end the model. Only then may other files with the same bytes become the model's. */
bool load_may_end(const struct load_request *request, const struct model *model);

/* A model that was made of the same path or file, and may still have the same bytes. Only comparing them tells, and
 * what Load would do depends on it. NULL: there is none with an id greater than `after`. */
struct model *load_doubt(const struct loads *loads, const struct load_request *request, const struct source *source,
                         const struct plan *plan, uint64_t after);

/* Notes the result of a comparison with the model of this id. If the bytes differ, the model counts as changed. If they
 * are the same, the model has the new source already: see verify_compare(). */
void load_doubt_ends(const struct loads *loads, uint64_t model, enum compared compared);

/* Whether Load and Plan fail because of this: the file was written to while it was compared, or cannot be read. */
bool load_doubt_fails(enum compared compared, const struct failure *why);

/* Marks models as changed: those that were loaded from the source's path, if the files there have other sizes now. They
 * do not count as deleted: there are files. */
void load_note_changes(const struct loads *loads, const struct source *source);

/* Bytes of host memory that the daemon itself uses for a model, as far as they are known before the model is filled:
 * the parsed header, the header's copy for clients, and the plan. */
uint64_t load_overhead(const struct model_header *header, const struct plan *plan);
