/* A load, from the request to the resident model or to nothing at all.
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
 * IDENTIFYING, OPENING, ALLOCATING, SEALING and RELEASING each have one job on a worker. RESERVING waits for models
 * that have to go first, or in a queue until there is memory, after which it looks at the files again; and if memory
 * that was promised cannot be had, ALLOCATING goes back to it, and other models go. FILLING has as many fills as it was
 * given slots, and a job beside them that makes what clients will be given; ALLOCATING has some fills too, which wait
 * for the memory when they are full. STOPPING waits for what is under way and gets nothing new. The model enters the
 * registry between IDENTIFYING and OPENING; a load of a file that the registry has already ends there, and its callers
 * join. A load of a cached model goes on with RESERVING, and if it fails the model stays cached.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/memory/residency.h"
#include "daemon/model/model.h"
#include "daemon/session/waiters.h"
#include "daemon/wire/call.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct events;
struct load;

/* All loads under way. */
struct loads {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct residency *residency;
    struct events *events;
    struct quota *quota;
    TAILQ_HEAD(, load) list; /* oldest first */
    size_t n;

    /* The owner's: verify_compare() with its context. */
    int (*compare)(void *context, struct model *model, struct source *source, void (*done)(void *load, bool same),
                   void *load);
    void *compare_context;
};

/* Whether the model that has a name loses it to another one, when that is resident. The caller may end the model. */
enum replace {
    REPLACE_STALE, /* if its file has changed, and nobody uses it */
    REPLACE_FILE,  /* if it was loaded by the same path, whatever that leads to now */
    REPLACE_NAME,  /* always */
};

/* `loads` has its first part set. */
void loads_init(struct loads *loads);

struct load_request {
    const int *fds; /* the files, which the load takes over; NULL: by path */
    size_t n_fds;
    const char *path;          /* borrowed */
    const char *name;          /* NULL: from the file's; borrowed */
    const struct forms *forms; /* which the load keeps */
    struct device_set among;   /* at least one device */
    bool decode_on_cpu;        /* also where the device could */
    bool wait;                 /* answer when resident; the load ends when nobody waits any more */
    bool lease;                /* with a lease; only with `wait` */
    double wait_for_memory;    /* seconds that it may be queued; 0: not */
    struct peer *peer;         /* who asks; the load keeps it */
    uid_t uid;                 /* the peer's */
    bool trusted;              /* may have the daemon read what not everyone may read */
    bool pin;
    int64_t ttl; /* seconds; -1: for ever */
    enum access access;
    enum replace replace;
    bool trace; /* tell what happened when */

    /* For loads without a call: told the outcome, NULL or the model, with a sentence if it failed. */
    void (*done)(void *context, struct model *model, const char *why);
    void *context;
};

/* Begins a load, or joins one, or finds its model resident; in any case the call, if there is one, is answered, now or
 * later. The user is charged for the load while it is under way. */
void load_begin(struct loads *loads, const struct load_request *request, struct call *call);

/* Brings a model back that is cached, or will be in a moment. The call, which waits for it in this way, is answered.
 * The caller is charged for the load, whoever loaded the model. */
void load_restore(struct loads *loads, struct model *model, struct call *call, enum waiter_kind kind);

/* Has a call wait for a load under way. */
void load_wait(struct load *load, struct call *call, enum waiter_kind kind);

/* Ends a load under way, with an error for all who wait for it; the memory goes when it is no longer written to.
 * `call`, unless NULL, is answered then: with success if that error is Cancelled. */
void load_end(struct load *load, enum wire_error error, struct call *call);

/* The load has failed or was cancelled, and is cleaning up. */
bool load_ends(const struct load *load);

/* A model is gone, or may be evicted now: loads that wait for its name, or its memory, look again. */
void loads_retry(struct loads *loads);

/* Tells those who wait how far their load is, and has those in the queue look whether others than models gave memory
 * back, or their time is over. Called several times a second. */
void loads_report(struct loads *loads);

/* What a request to load these files would come to, as far as the models that are there decide it. */
enum load_verdict {
    LOAD_NEW,     /* it is loaded, if it fits */
    LOAD_JOIN,    /* it is there, or on its way */
    LOAD_RESTORE, /* it is brought back from host memory, if it fits */
    LOAD_QUEUED,  /* OutOfDeviceMemory, unless it may wait: it is in the queue for memory */
    LOAD_BUSY,    /* ModelBusy: it is on its way out, and somebody holds it */
    LOAD_TAKEN,   /* NameInUse */
    LOAD_DENIED,  /* PermissionDenied: it may not be public */
};

/* request: form, among, name, access, peer, uid and trusted count. facts: of the source's files. *ret_model: the model
 * that it is about; NULL: none. */
enum load_verdict load_foresee(struct loads *loads, const struct load_request *request, struct source *source,
                               const struct access_facts *facts, struct plan *plan, struct model **ret_model);

/* A model that was made of the same path or file, but whether it still has the same bytes only comparing them tells:
 * what Load would do depends on it. NULL: there is none with an id greater than `after`. */
struct model *load_doubt(const struct loads *loads, const struct load_request *request, const struct source *source,
                         const struct plan *plan, uint64_t after);

/* What comparing with it came to. One that is the same has the new source by now (verify.h). */
void load_doubt_ends(const struct loads *loads, uint64_t model, bool same);

/* Of the models that were loaded from the source's path, those that were made of other files have changed: their path
 * has other bytes. facts: the source's. */
void load_note_changes(const struct loads *loads, const struct load_request *request, const struct source *source,
                       const struct access_facts *facts);

/* How many are under way that the peer began, or whose model it sees. */
size_t loads_seen(const struct loads *loads, const struct peer *peer);

/* Bytes of the host's memory that the daemon itself keeps of a model, as far as they are known before it is filled: the
 * header as it was parsed, its copy for those who attach, and the plan. */
uint64_t load_keeps(const struct gguf *header, const struct plan *plan);

/* load_end() for all. */
void loads_end(struct loads *loads, enum wire_error error);
