/* A model that the daemon knows: resident, on its way in, or on its way out.
 *
 * The registry owns it. All fields are the loop's; a worker reads the source, the header and the plan of a model whose
 * load or verification it works for, which are immutable by then.
 *
 *     OPENING ─▶ QUEUED ─▶ ALLOCATING ─▶ FILLING ─▶ SEALING ─▶ RESIDENT ─▶ UNLOADING ─▶ (gone)
 *        └──────────┴───────────┴───────────┴───────────┴─ failed or cancelled ─▶┘
 *
 *     OPENING ─▶ ALLOCATING                        without waiting for memory
 *     ALLOCATING ─▶ QUEUED                         of a cached model
 *     RESIDENT ─▶ DRAINING ─▶ UNLOADING            no new leases; gone when the last one is
 *     RESIDENT ─▶ SAVING ─▶ CACHED ─▶ ALLOCATING   evicted from a GPU to host memory, and back
 *     UNLOADING ─▶ CACHED                          it did not come back: that load failed, or was cancelled
 *     RESIDENT ─▶ FAILED ─▶ UNLOADING              its device is lost
 *     FAILED ─▶ DRAINING                           and it is to go, but is leased
 *
 * From SAVING, if no copy could be made, and from CACHED it is gone without more. model_move() has this as a table.
 */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/device/device.h"
#include "daemon/gguf/gguf.h"
#include "daemon/model/access.h"
#include "daemon/model/lease.h"
#include "daemon/model/plan.h"
#include "daemon/model/publication.h"
#include "daemon/model/source.h"
#include "proto/model_file.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

enum model_state {
    MODEL_OPENING,
    MODEL_QUEUED, /* until there is memory: only where its load was told to wait for some */
    MODEL_ALLOCATING,
    MODEL_FILLING,
    MODEL_SEALING,
    MODEL_RESIDENT,
    MODEL_DRAINING, /* to be unloaded when the last lease ends; no new ones */
    MODEL_UNLOADING,
    MODEL_FAILED, /* its device is lost */
    MODEL_SAVING, /* on its way to host memory */
    MODEL_CACHED, /* there */
    MODEL_STATE_COUNT,
};

/* Room for "NAME#ID", which a model is called that has lost its name. No name has a '#'. */
#define MODEL_NAME_SIZE (MODEL_NAME_MAX + 24u)

/* Names that one model has. */
#define MODEL_NAMES_MAX 16u

/* And those of them that one user gave who did not load it. */
#define MODEL_GIVEN_MAX 4u

/* One of a model's names. Several models may have it: whoever gave it did not see the others. */
struct model_name {
    TAILQ_ENTRY(model_name) link;
    uint64_t since; /* the registry's count: of two that are the same, which one came first */
    uid_t uid;      /* who gave it */
    char text[MODEL_NAME_MAX + 1];
};

TAILQ_HEAD(model_names, model_name);

struct model {
    TAILQ_ENTRY(model) link;
    uint64_t id;
    char name[MODEL_NAME_SIZE]; /* the first of its names; or NAME#ID: it has none */
    struct model_names names;   /* oldest first; the registry's to change */
    size_t n_names;
    char takes[MODEL_NAME_MAX + 1]; /* the name that it gets from another when it is resident; "": it has its own */
    char *origin;                   /* the path that was asked for, which may be a link; NULL: none was */
    enum model_state state;
    unsigned position;         /* its place among those who wait for the same memory, from 1; 0: it is not queued */
    const struct forms *forms; /* as asked for; the model's reference */
    struct device *device;
    uid_t uid; /* who loaded it */
    bool pinned;
    int64_t ttl; /* seconds of idleness after which it is unloaded; -1: never */

    enum access access;
    struct access_facts *facts; /* of its files, as they were when somebody looked last; NULL: not known */
    uid_t *guests;              /* users who are no readers by the facts, but showed that they have the files open */
    size_t n_guests;

    struct source *source;
    bool changed;        /* its path has other bytes by now; it is joined by nobody any more */
    struct gguf *header; /* NULL before it was read */
    struct plan *plan;   /* NULL before it was made */

    uint64_t reserved;   /* bytes of the device's ledger that are this model's */
    struct arena *arena; /* NULL before it was taken */
    struct device_export export;
    struct publication published; /* made while it is filled */
    uint64_t charged;             /* bytes of the host's ledger that are this model's, besides those of its memory */
    struct device *charged_to;    /* NULL: none */
    uint64_t kept;                /* bytes that its header and the like take */
    struct quota_charge quota;    /* of the user who loaded it: reserved and charged */

    struct lease_list leases;
    size_t n_leases;
    unsigned n_holds;    /* the daemon's own work that reads its memory: verifications */
    uint64_t drains;     /* uv_hrtime() since when it drains; 0: it does not */
    uint64_t drain_ends; /* and when its name is free for others, whoever holds it; UINT64_MAX: not before it is gone */
    bool holders_told;   /* the journal names those who keep it from going */
    uint64_t idle_since; /* uv_hrtime() when the last lease ended, or it became resident */
    uint64_t overflows;
    struct load *load; /* the upper layer's; NULL: none is under way */
    bool departs;      /* that load has failed or was cancelled: the model will soon be gone, or cached again */
    void *cache;       /* the arena's bytes, mapped from anonymous memory; NULL unless they are kept */
};

/* "opening", "allocating", ... Static. */
const char *model_state_name(enum model_state state);

/* Whether the second state may follow the first, or is the same. */
bool model_may_move(enum model_state from, enum model_state to);

/* To the next state, which has to be one that may follow, or the same again. The only one that sets it. */
void model_move(struct model *model, enum model_state state);

/* The model will soon be gone, or cached again: its memory and its name come back by themselves. */
bool model_departs(const struct model *model);

/* Its device is lost, and with it what it held: FAILED, or on its way out since. */
bool model_lost(const struct model *model);

/* One of its names is this one. */
bool model_has_name(const struct model *model, const char *name);

/* Frees its names for others: it is called "NAME#ID" from here on, after the first of them. */
void model_lose_name(struct model *model);

/* It has none. */
bool model_nameless(const struct model *model);

/* Keeps the model from being unloaded while the daemon itself reads it, until it is unheld as often as it was held. */
void model_hold(struct model *model);
void model_unhold(struct model *model);

/* What the model is to somebody. */
enum sight {
    SIGHT_NONE,    /* it does not exist */
    SIGHT_TRUSTED, /* seen because root and the daemon's own user see all (trust.h), and for no other reason */
    SIGHT_READER,  /* it is for everybody, or for those who may read its files */
    SIGHT_OWN,     /* it was loaded by this user */
};

enum sight model_sight(const struct model *model, const struct peer *peer);

/* It is anything but SIGHT_NONE. */
bool model_visible(const struct model *model, const struct peer *peer);

/* The peer may take leases. A private model is its user's alone, whoever else sees it. */
bool model_attachable(const struct model *model, const struct peer *peer);

/* Guests that one model has. */
#define MODEL_GUESTS_MAX 256u

/* The peer has shown that it can read the files: it passed them open. From now on it sees the model, if that is not
 * private. -ENOMEM; -EMLINK: there are too many. */
int model_admit(struct model *model, const struct peer *peer);

/* The same bytes stand in other files by now, or in the same after they were touched: takes the source over. */
void model_set_source(struct model *model, struct source *source);

/* Takes new facts over, and with them one reference. Users who cannot see it any more lose the names that they gave,
 * but for the last one, which is its user's from then on; unless the facts are NULL. NULL is fine: nobody but its user
 * is known to read it. */
void model_set_facts(struct model *model, struct access_facts *facts);

/* What it is made of its file as: asked for in the same words, or with the same outcome for each tensor. The plan is
 * one of the same file, or NULL. */
bool model_same_forms(const struct model *model, const struct forms *forms, const struct plan *plan);

/* Somebody, or the daemon, uses the memory. */
bool model_in_use(const struct model *model);
