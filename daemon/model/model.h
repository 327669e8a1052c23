/* A model that the daemon knows: resident, being loaded, or being unloaded.
 *
 * The registry owns the model. Only the loop thread uses its fields, with one exception: a worker that loads or
 * verifies the model reads its source, header and plan, which do not change any more at that time.
 *
 *     OPENING ─▶ QUEUED ─▶ ALLOCATING ─▶ FILLING ─▶ SEALING ─▶ RESIDENT ─▶ UNLOADING ─▶ (gone)
 *        └──────────┴───────────┴───────────┴───────────┴─ failed or cancelled ─▶┘
 *
 *     OPENING ─▶ ALLOCATING                        without waiting for memory
 *     ALLOCATING ─▶ QUEUED                         a cached model waits for memory
 *     RESIDENT ─▶ DRAINING ─▶ UNLOADING            no new leases; unloaded when the last lease ends
 *     RESIDENT ─▶ SAVING ─▶ CACHED ─▶ ALLOCATING   evicted from a GPU to host memory, and back
 *     UNLOADING ─▶ CACHED                          its load from host memory failed or was cancelled
 *     RESIDENT ─▶ FAILED ─▶ UNLOADING              its device is lost
 *     FAILED ─▶ DRAINING                           to be unloaded, but still leased
 *     OPENING ─▶ RESIDENT                          it was resident before the daemon was restarted
 *
 * A model is also gone after SAVING, if no copy could be made, and after CACHED. model_move() has this as a table. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/device/device.h"
#include "daemon/header/model_header.h"
#include "daemon/model/access.h"
#include "daemon/model/lease.h"
#include "daemon/model/manifest.h"
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
    MODEL_QUEUED, /* waits for memory; only if the load's request said to wait */
    MODEL_ALLOCATING,
    MODEL_FILLING,
    MODEL_SEALING,
    MODEL_RESIDENT,
    MODEL_DRAINING, /* unloaded when the last lease ends; gets no new leases */
    MODEL_UNLOADING,
    MODEL_FAILED, /* its device is lost */
    MODEL_SAVING, /* being copied to host memory */
    MODEL_CACHED, /* in host memory */
    MODEL_STATE_COUNT,
};

/* Room for "NAME#ID". A model that has lost its name is called so. No name that a client gives has a '#'. */
#define MODEL_NAME_SIZE (MODEL_NAME_MAX + 24u)

/* Bytes of a model's token. */
#define MODEL_TOKEN_SIZE 16u

/* The most names that one model has. */
#define MODEL_NAMES_MAX 16u

/* The most of them that one user gave who neither loaded the model nor is trusted. As many names are kept free for the
 * user who loaded it: other users give no name to a model that has MODEL_NAMES_MAX - MODEL_GIVEN_MAX names. */
#define MODEL_GIVEN_MAX 4u

/* One of a model's names. Several models may have it: whoever gave it did not see the others. */
struct model_name {
    TAILQ_ENTRY(model_name) link;
    uint64_t since; /* a number from the registry: the older of two equal names has the smaller one */
    uid_t uid;      /* who gave it */
    uint32_t mark;  /* made of the text: names with different marks differ */
    char text[MODEL_NAME_MAX + 1];
};

TAILQ_HEAD(model_names, model_name);

/* Models whose stored description may be out of date. */
struct model_dirty {
    TAILQ_HEAD(, model) models;
    size_t n;
};

struct model {
    TAILQ_ENTRY(model) link;
    TAILQ_ENTRY(model) dirty_link;
    struct model_dirty *dirty_in; /* the registry's models that are dirty; NULL: the registry has not got the model */
    bool dirty;                   /* it is among them: see model_mark_dirty() */
    const struct registry *registry; /* that has it; NULL: none */
    uint64_t id;
    uint8_t token[MODEL_TOKEN_SIZE]; /* random: whoever has a lease is told it, and finds the model by it after the
                                        daemon was restarted */
    char name[MODEL_NAME_SIZE];      /* the first of its names; NAME#ID if it has none */
    struct model_names names;        /* oldest first; only the registry changes them */
    size_t n_names;
    char takes[MODEL_NAME_MAX + 1]; /* the name that it will get from another model; "": it has its own name */
    char *key;                      /* what its publisher says is in it; NULL: nothing, or it is of files */
    char *origin;                   /* the path in the request, or in that of a preload that joined the model; it may be
                                       a symbolic link; NULL: no path */
    enum model_state state;
    unsigned position;           /* its place in the queue for the same memory, from 1; 0: not queued */
    const struct forms *forms;   /* that the request asked for; one reference */
    const struct layout *layout; /* the same */
    struct device *device;
    uid_t uid; /* who loaded it */
    bool pinned;
    int64_t ttl; /* seconds of idleness after which it is unloaded; -1: never */

    enum access access;
    struct access_facts *facts; /* of its files, when they were last read; NULL: not known */
    uid_t *guests;              /* users who may not read the files by `facts`, but passed the open files since these
                                   were last narrowed */
    size_t n_guests;

    struct source *source;
    bool changed;                /* its path now leads to other bytes; loads of the path no longer join this model */
    bool deleted;                /* one of its files was deleted, when the daemon last looked */
    struct model_header *header; /* NULL until it is read */
    struct plan *plan;           /* NULL until it is made */
    struct manifest *manifest;   /* of a model that was published, or will be; NULL: the model is of files */

    uint64_t reserved;   /* bytes of the arena in the device's ledger. registry.h explains the words for bytes */
    struct arena *arena; /* NULL until it is allocated */
    bool arena_own;      /* a load of this process made it, and nobody was granted a lease: no client has a way to it */
    struct device_export export;
    struct publication published; /* made while the arena is filled */
    uint64_t charged;             /* bytes in the host's ledger for what the daemon keeps of the model */
    struct device *charged_to;    /* whose ledger has `charged`: the host; NULL: nothing was charged */
    uint64_t overhead;            /* bytes of the daemon's own memory: header, plan, publication */
    struct quota_charge counted;  /* as one of its user's models */
    struct quota_charge quota;    /* of the user who loaded it: `reserved` and `charged` */

    struct lease_list leases;
    size_t n_leases;
    unsigned n_holds;    /* jobs of the daemon that read its memory: verifications */
    uint64_t drains;     /* uv_hrtime() when it began to drain; 0: it does not drain */
    uint64_t drain_ends; /* uv_hrtime() when it loses its name, even if it is leased; UINT64_MAX: never */
    bool holders_told;   /* the journal has named the holders that keep it from being unloaded */
    uint64_t idle_since; /* uv_hrtime() when the last lease ended, or when it became resident */
    bool held_up;        /* its load waits for a file that does not answer */
    uint64_t overflows;
    struct load *load;     /* belongs to the upper layer; NULL: no load is running */
    struct stored *stored; /* the same: what is kept of it outside the process; NULL: nothing */
    bool departs;          /* its load failed or was cancelled and is being cleaned up: soon gone, or cached again */
    void *cache;           /* copy of the arena in anonymous memory; NULL: no copy */
    bool cache_pinned;     /* that the device can copy from by itself */
};

/* "opening", "allocating", ... Static. */
const char *model_state_name(enum model_state state);

/* Whether the second state may follow the first, or is the same. */
bool model_may_move(enum model_state from, enum model_state to);

/* Sets the state, which must be the same as before or one that may follow it. No other function sets the state. */
void model_move(struct model *model, enum model_state state);

/* Whether the model will soon be gone, or cached again. Then its memory and its name become free without an
 * eviction. */
bool model_departs(const struct model *model);

/* Whether its device is lost, and so the model's memory: it is FAILED, or was and is now being unloaded. */
bool model_lost(const struct model *model);

/* The model's name that equals the text; NULL: it has no such name. */
struct model_name *model_find_name(const struct model *model, const char *text);

/* Whether this is one of its names. */
bool model_has_name(const struct model *model, const char *name);

/* Frees its names, so that other models can get them. From now on it is called "NAME#ID", NAME being the first of
 * them. */
void model_lose_name(struct model *model);

/* Whether it has no name. */
bool model_nameless(const struct model *model);

/* Something has changed that a description of the model outside the process (daemon/keep/description.h) says, or
 * whether there should be one. Whoever keeps such descriptions takes the model by registry_take_dirty(). The functions
 * here and in registry.h call this themselves. */
void model_mark_dirty(struct model *model);

/* Set what a request may change while the model is resident. */
void model_set_pinned(struct model *model, bool pinned);
void model_set_ttl(struct model *model, int64_t ttl);
void model_set_changed(struct model *model, bool changed);
void model_set_deleted(struct model *model, bool deleted);

/* Notes another path that the model was requested by. Takes the text over. */
void model_set_origin(struct model *model, char *origin);

/* Makes the model public. The caller has checked that it may be. */
void model_widen(struct model *model);

/* Whether the model is not of files, but published by a client, or will be. */
bool model_is_published(const struct model *model);

/* Keep the model from being unloaded while the daemon itself reads it. Each hold needs one unhold. */
void model_hold(struct model *model);
void model_unhold(struct model *model);

/* Whether the user may end the model: who loaded it may, and trusted users (trust.h). */
bool model_may_end(const struct model *model, uid_t uid);

/* How a user sees a model. */
enum sight {
    SIGHT_NONE,    /* not at all: for this user the model does not exist */
    SIGHT_TRUSTED, /* only because root and the daemon's own user see all models (trust.h) */
    SIGHT_READER,  /* the model is public, or the user may read its files */
    SIGHT_OWN,     /* the user loaded it */
};

enum sight model_sight(const struct model *model, const struct peer *peer);

/* Whether the sight is not SIGHT_NONE. */
bool model_visible(const struct model *model, const struct peer *peer);

/* Whether the peer may take leases. Of a private model only the user who loaded it may, even if others see the
 * model. */
bool model_attachable(const struct model *model, const struct peer *peer);

/* Whether this user's loads may join the model, as far as its access decides. Only the user who loaded a private model
 * may. private: the load asks for a private model: then it joins only one that the user loaded. */
bool model_joinable(const struct model *model, uid_t uid, bool private);

/* Whether all users who see the model may see another one with these facts, of ACCESS_READERS or ACCESS_PUBLIC. May
 * also be false where it is true. */
bool model_covered_by(const struct model *model, enum access access, const struct access_facts *facts);

/* Makes the model private. Users who cannot see it any more lose the names that they gave, as in model_set_facts(). */
void model_narrow(struct model *model);

/* The most guests that one model has. */
#define MODEL_GUESTS_MAX 256u

/* Whether model_admit() has room for the peer's user. 0, or -EMLINK: the model has too many guests. */
int model_may_admit(const struct model *model, const struct peer *peer);

/* Adds the peer's user to the guests: it passed the open files, so it can read them. From now on the user sees the
 * model, unless the model is private. -ENOMEM; -EMLINK: the model has too many guests. */
int model_admit(struct model *model, const struct peer *peer);

/* Replaces the source, and takes the new one over. The new source has the same bytes: in other files, or in the same
 * files after these were touched. */
void model_set_source(struct model *model, struct source *source);

/* Replaces the facts, and takes over one reference. NULL is allowed: then only the user who loaded the model is known
 * to be able to read its files. Guests who may not be able to by the new facts, and were by the old ones
 * (access_lost()), are guests no longer. Unless it is NULL, users who cannot see the model any more lose the names that
 * they gave; the last name stays, and is the user's who loaded the model. */
void model_set_facts(struct model *model, struct access_facts *facts);

/* Whether the model has these forms and this layout: they were requested with the same words, or they give each tensor
 * the same bytes. plan: a plan of the same file with `forms` and `layout`, or NULL; without it only the words are
 * compared. */
bool model_same_forms(const struct model *model, const struct forms *forms, const struct layout *layout,
                      const struct plan *plan);

/* Whether they were requested with the same words. */
bool model_same_words(const struct model *model, const struct forms *forms, const struct layout *layout);

/* Whether a client or the daemon itself uses the memory. */
bool model_in_use(const struct model *model);
