/* The models that the daemon knows, by name and by identity; and the ledger of each device's memory.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/model/model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

TAILQ_HEAD(model_list, model);

struct registry {
    struct model_list models; /* oldest first */
    size_t n_models;
    size_t n_leases;
    uint64_t next_model;
    uint64_t next_name;
    uint64_t next_lease;
    struct quota *quota; /* borrowed; NULL: nobody is counted */

    /* The owner's; may be NULL. Called after a lease ended, and after a model lost its memory with its device. */
    void (*lease_ended)(void *context, struct model *model);
    void (*model_failed)(void *context, struct model *model);
    void *context;
};

void registry_init(struct registry *registry, struct quota *quota);

/* The model that a name means to this peer; NULL: it sees none. Of several that it sees it is the one that it loaded
 * itself; else one that it may read rather than one that it sees by trust; then one whose name a trusted user gave;
 * then the one that had the name first. "NAME#ID" means the model of that id, if NAME is, or was, a name of it. How
 * long this takes does not tell whether there is a model of that name which the peer does not see. */
struct model *registry_find(const struct registry *registry, const char *name, const struct peer *peer);

/* NULL if there is none. */
struct model *registry_find_id(const struct registry *registry, uint64_t id);

/* The model that keeps this peer from giving the name to another one: one that it loaded, or may read. One that it does
 * not see, or sees by trust alone, keeps nobody from anything. NULL: there is none. */
struct model *registry_holder(const struct registry *registry, const char *name, const struct peer *peer);

/* The model that will get the name when it is resident, and that this peer loads, or may read. NULL: there is none. */
struct model *registry_taker(const struct registry *registry, const char *name, const struct peer *peer);

/* Gives a model a further name, which it does not have. -EMLINK: it has MODEL_NAMES_MAX; -EDQUOT: it
 * has MODEL_GIVEN_MAX of this user, who did not load it and is not trusted; -ENOMEM. */
int registry_name(struct registry *registry, struct model *model, const char *name, uid_t uid);

/* Gives a model the name that it takes: from the model that has it, of which it takes all names if it is to; `from`
 * NULL: that is gone. Who gave a name, and when, stays. -EMLINK or -ENOMEM: it has no name, and keeps the one that says
 * so. */
int registry_take_names(struct registry *registry, struct model *from, struct model *to, bool all);

/* Takes a name that the model has away from it. Returns whether it has others. If not, it keeps this one. */
bool registry_unname(struct model *model, const char *name);

/* Which model is looked for: one made of these files, on one of these devices. */
struct registry_query {
    const struct source *source;
    const struct forms *forms; /* asked for in these words */
    const struct plan *plan;   /* or, unless NULL, with this outcome */
    const struct device_set *among;
    const uid_t *owner;      /* NULL, or the user whose private models alone count */
    const struct peer *peer; /* who asks */
    bool placed;             /* the path of the files was found to lead to them */
};

/* The model that is looked for; NULL if there is none. One that drains, whose device is lost, or whose
 * file has changed, does not count. */
struct model *registry_find_source(const struct registry *registry, const struct registry_query *query);

/* What the path of the files leads to is what the model's path leads to. Two users' mount namespaces may have different
 * files at the same path, so it is so only where both were found there, or the user is the same. */
bool registry_same_path(const struct model *model, const struct registry_query *query);

/* A model of the same kind, made of the same file, or of the same path if the peer reads the model, when that had the
 * same size: whether its bytes are still the same, only comparing them tells. The first with an id greater than
 * `after`; NULL if there is none. */
struct model *registry_find_doubtful(const struct registry *registry, const struct registry_query *query,
                                     uint64_t after);

/* A model of the same kind that was asked for in other words: whether it comes to the same, the plans tell. unplanned:
 * one that has no plan yet. */
struct model *registry_find_other(const struct registry *registry, const struct registry_query *query, bool unplanned);

/* Adds a model, which the registry then owns, with an id of its own, and with the name that stands in model->name; who
 * loaded it gave it that. One that takes a name later is called NAME#ID until then. -ENOMEM: it was not added. */
int registry_add(struct registry *registry, struct model *model);

/* Takes a model out and frees what it holds in this process: file, header, plan, table. It has no arena, no lease and
 * no load any more, and its reservation was given back. */
void registry_remove(struct registry *registry, struct model *model);

/* Enters `bytes` into the device's ledger for this model. Whether it has room is the caller's to know. */
void registry_reserve(struct model *model, uint64_t bytes);

/* Takes the model's bytes out of the device's ledger. */
void registry_unreserve(struct model *model);

/* What a model may take of the daemon's own memory for its header and the like before it is charged for it. */
#define REGISTRY_KEPT_FREE ((uint64_t)1 << 20)

/* Adds to what the daemon itself keeps of a model, and enters what goes beyond REGISTRY_KEPT_FREE into the ledger of
 * the host's memory, until the model is removed: a small file may have a large header. Whether the ledger has room is
 * the caller's to know. */
void registry_charge(struct model *model, struct device *host, uint64_t bytes);

/* How much that would enter. model: NULL for one that nothing is kept of yet. */
uint64_t registry_due(const struct model *model, uint64_t bytes);

/* Takes what it was charged out of the ledger: the model goes, and nothing is charged to it any more. */
void registry_discharge(struct model *model);

/* The device is lost: its resident models fail, and the owner is told of each. */
void registry_lose_device(struct registry *registry, struct device *device);
