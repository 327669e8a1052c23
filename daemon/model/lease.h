/* A lease: the right of a client to a model's memory, which is not freed while the lease lives.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/quota.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

struct model;
struct registry;

LIST_HEAD(lease_list, lease);

/* Who holds leases: one client. */
struct lease_holder {
    struct lease_list leases;
    pid_t pid;
    uid_t uid;
};

struct lease {
    uint64_t id; /* never used twice */
    char *name;  /* the name that the client asked for, or was told; NULL: no memory, so the model's own name */
    struct registry *registry;
    struct model *model;
    struct lease_holder *holder;
    uint64_t since; /* uv_hrtime() */
    bool telling;   /* a reply is being queued which says that the model drains */
    bool told;      /* that reply was queued */
    struct quota_charge charge;
    LIST_ENTRY(lease) of_model;
    LIST_ENTRY(lease) of_holder;
};

/* Grants a lease on a resident model. lease_end() must end it, at the latest when its holder ends. -EDQUOT and
 * *ret_limit, if the holder's user has too many leases; -ENOMEM. */
int lease_grant(struct registry *registry, struct model *model, struct lease_holder *holder, struct lease **ret,
                uint64_t *ret_limit);

/* Ends a lease and frees it, and tells the registry's owner. */
void lease_end(struct lease *lease);

/* Whether the holder should release the memory: the model drains, or its device is lost. */
bool lease_void(const struct lease *lease);
