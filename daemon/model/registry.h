/* The models that the daemon knows, by name and by identity; and the changes of each device's ledger.
 *
 * These words for bytes are easy to confuse.
 *
 * Of a model (struct model):
 *   reserved   its arena. In the ledger of its device, from before the arena is allocated until it is freed; of an
 *              evicted model, until the eviction begins, because its bytes then belong to the load that needs them.
 *   overhead   the daemon's own memory for it: header, plan, publication. Always host memory.
 *   charged    the part of `overhead` beyond REGISTRY_OVERHEAD_FREE. In the ledger of the host.
 *   due        what the next registry_charge() would add to `charged`.
 * `reserved` and `charged` together count for the quota of the user who loaded the model.
 *
 * Of a device (struct device):
 *   used       its ledger: the sum of all that is reserved and charged there.
 *   taken      the part of `used` that is allocated by now.
 *   queued     what queued loads wait for. Not in `used`.
 *
 * Of host memory for copies of models that a GPU has no room for (struct host_cache):
 *   used       its own ledger, limited by its size. Not in the device's `used`.
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
    struct model_dirty dirty; /* those that changed since registry_take_dirty() returned them */
    size_t n_models;
    size_t n_leases;
    uint64_t next_model;
    uint64_t next_name;
    uint64_t next_lease;
    struct quota *quota; /* borrowed; NULL: users have no quotas */

    /* The owner sets these; each may be NULL. lease_ended is called after a lease ended. model_failed is called after a
     * model lost its memory because its device is lost. */
    void (*lease_ended)(void *context, struct model *model);
    void (*model_failed)(void *context, struct model *model);
    void *context;
};

void registry_init(struct registry *registry, struct quota *quota);

/* The model that a name means for this peer; NULL if it sees no such model. If the peer sees several models with this
 * name, these rules choose, in this order: the model that the peer's user loaded; a model that the peer may read,
 * before one that it sees only as a trusted user (trust.h); a model whose name a trusted user gave; the model that got
 * the name first. "NAME#ID" means the model with this id, if NAME is one of its names; if it has none, the last that it
 * had. The time of this call does not show whether there is a model of this name that the peer does not see. */
struct model *registry_find(const struct registry *registry, const char *name, const struct peer *peer);

/* Of two models that have the same name, whether a peer that sees the first one in this way, and the other in that way,
 * means the first by the name. These are the rules of registry_find(). */
bool registry_prefers(enum sight sight, const struct model_name *name, enum sight other_sight,
                      const struct model_name *other);

/* The first model with an id greater than `after` that has this name, or that "NAME#ID" means, and that the peer does
 * not see by facts that may be too old: a model of ACCESS_READERS. NULL if there is none. */
struct model *registry_find_hidden(const struct registry *registry, const char *name, const struct peer *peer,
                                   uint64_t after);

/* The model with this id; NULL if there is none. */
struct model *registry_find_id(const struct registry *registry, uint64_t id);

/* The model because of which this peer cannot give the name to another model; NULL if there is none. Only a model
 * counts that the peer's user loaded, or that the peer may read, and that has the name or will take it. A model that
 * the peer does not see, or sees only as a trusted user, does not count. */
struct model *registry_name_owner(const struct registry *registry, const char *name, const struct peer *peer);

/* The model that will get the name when it is resident, and that this peer loads, or may read. NULL: there is none. */
struct model *registry_taker(const struct registry *registry, const char *name, const struct peer *peer);

/* Whether this user may give the model one name more. 0; -EMLINK: it has as many as it may, the one that it will take
 * included: MODEL_NAMES_MAX; or, if the user neither loaded it nor is trusted, MODEL_NAMES_MAX - MODEL_GIVEN_MAX.
 * -EDQUOT: it has MODEL_GIVEN_MAX of this user, who neither loaded it nor is trusted. */
int registry_may_name(const struct model *model, uid_t uid);

/* Gives a model a further name, which it does not have. Errors are those of registry_may_name(); or -ENOMEM. */
int registry_name(struct registry *registry, struct model *model, const char *name, uid_t uid);

/* Moves the name to->takes from the model `from` to the model `to`. registry_may_name() has allowed it. all: moves the
 * other names of `from` too, as long as `to` has less than MODEL_NAMES_MAX; `from` keeps the rest. `from` is NULL if
 * the old model is gone. uid: who asked for this. That user has given the name to->takes from now on. The others keep
 * the user who gave them, unless that one is trusted and `uid` is not: whom trusted users name, others do not decide.
 * All keep their age. -ENOMEM: the old model is gone, and `to` does not have the name. */
int registry_take_names(struct registry *registry, struct model *from, struct model *to, bool all, uid_t uid);

/* Removes one of the model's names, if the model has others. Returns whether it has others. */
bool registry_unname(struct model *model, const char *name);

/* A query for a model that was made of these files and is on one of these devices. */
struct registry_query {
    const struct source *source;
    const struct forms *forms;   /* the request's forms */
    const struct layout *layout; /* and its layout */
    const struct plan *plan;     /* unless NULL: a model with the same result matches as well */
    const struct device_set *among;
    uid_t uid;               /* the user who asks */
    bool private;            /* the request is for a private model */
    const struct peer *peer; /* who asks */
};

/* The model that the query describes; NULL if there is none. If there are several, it is one that is private to the
 * user who asks; else the oldest. A model does not count if it drains, if its device is lost, or if its file has
 * changed. */
struct model *registry_find_source(const struct registry *registry, const struct registry_query *query);

/* Whether the source's files were opened at the places (source.h) where the model's files were opened, in any order; or
 * the daemon opened both by the same link. */
bool registry_same_path(const struct model *model, const struct source *source);

/* Whether each of the source's files is one of the model's, by whatever path, or is at the place of one, as
 * registry_same_path() says: the files that the model would be made of now. But a file that is still one of the model's
 * may be at no path of it any more. */
bool registry_same_place(const struct model *model, const struct source *source);

/* A model with the same forms and layout that may still have the same bytes as the query's files: only comparing them
 * tells. It was made of the same files, or of files in the same places if the peer may read the model; and all sizes
 * are equal. Returns the first one with an id greater than `after`; NULL if there is none. */
struct model *registry_find_doubtful(const struct registry *registry, const struct registry_query *query,
                                     uint64_t after);

/* A model that matches the query but for its forms or layout, which were requested with other words. Its plan shows
 * whether the result is the same. unplanned: only a model that has no plan yet. */
struct model *registry_find_other(const struct registry *registry, const struct registry_query *query, bool unplanned);

/* Adds a model, which the registry then owns, and gives it an id. Its first name is model->name, given by the user who
 * loaded it. If model->takes is set, the model has no name yet: it is called NAME#ID until it takes one. -ENOMEM: it
 * was not added. */
int registry_add(struct registry *registry, struct model *model);

/* Adds a model that was resident before the daemon was restarted, with the id, the token and the names that it had. Ids
 * are given in ascending order: -EEXIST if there is a model with this one or a greater one. -EINVAL: no name, or too
 * many. -ENOMEM. After an error it was not added. */
int registry_resume(struct registry *registry, struct model *model, uint64_t id, const struct model_name *names,
                    size_t n_names);

/* The model with this token, if the peer may attach to it; NULL if there is none. */
struct model *registry_find_token(const struct registry *registry, const uint8_t token[MODEL_TOKEN_SIZE],
                                  const struct peer *peer);

/* Takes a model that was marked as dirty off the list of these; NULL: there is none. A model is on it when it is new,
 * and after each model_mark_dirty(). */
struct model *registry_take_dirty(struct registry *registry);

/* Removes a model and frees it with its file, header, plan and publication. Before, its arena must be freed, its
 * reservation returned, and nothing of it stored, and all its leases and its load must have ended. */
void registry_remove(struct registry *registry, struct model *model);

/* Adds `bytes` to the device's ledger for this model. The caller has checked that the ledger has room. */
void registry_reserve(struct model *model, uint64_t bytes);

/* Removes all reserved bytes of the model from the device's ledger. */
void registry_unreserve(struct model *model);

/* So many bytes of the daemon's own memory are free of charge for each model: for its header, plan and publication. */
#define REGISTRY_OVERHEAD_FREE ((uint64_t)1 << 20)

/* Adds `bytes` to what the daemon itself keeps of a model. What exceeds REGISTRY_OVERHEAD_FREE goes into the ledger of
 * the host's memory until the model is removed, because a small file may have a large header. The caller has checked
 * that the ledger has room. */
void registry_charge(struct model *model, struct device *host, uint64_t bytes);

/* How many bytes registry_charge() would add to the ledger. model: NULL for a model of which nothing is kept yet. */
uint64_t registry_due(const struct model *model, uint64_t bytes);

/* Removes the charged bytes of the model from the ledger. For a model that is being removed: nothing may be charged to
 * it later. */
void registry_discharge(struct model *model);

/* The device is lost: its resident models become FAILED, and model_failed is called for each. */
void registry_lose_device(struct registry *registry, struct device *device);
