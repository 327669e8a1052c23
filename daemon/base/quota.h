/* How much of the daemon each user has: a ledger of charges. Whoever takes something that is limited holds the charge
 * for it, and returns the charge when the thing is gone.
 *
 * Users who are trusted (trust.h) are counted, but not limited. Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum quota_kind {
    QUOTA_CONNECTIONS,
    QUOTA_LOADS, /* under way */
    QUOTA_LEASES,
    QUOTA_VERIFIES,    /* under way */
    QUOTA_PLANS,       /* under way; each has a worker read a header */
    QUOTA_MEMORY,      /* bytes of the daemon's heap: requests, calls under way, replies that wait */
    QUOTA_DESCRIPTORS, /* received, and kept for a call or for a load that was not asked for yet */
    QUOTA_MODELS,      /* that the user loaded: each call looks at all models */
    QUOTA_BYTES,       /* of the models that the user loaded, on all devices */
    QUOTA_KEPT,        /* descriptors in the service manager's store, of the models that the user loaded */
    QUOTA_KINDS,
};

/* The most that one user may have of each; and what all users together may have, of which one may take no more than
 * stays free for the others. So users who come later find something, however many there are. */
struct quota_limits {
    uint64_t most[QUOTA_KINDS];
    uint64_t all[QUOTA_KINDS]; /* 0: as much as the users may have */
};

/* The defaults. --help prints the first three, and the manual pages have them; a test compares. */
#define QUOTA_CONNECTIONS_DEFAULT 256
#define QUOTA_LOADS_DEFAULT       16
#define QUOTA_LEASES_DEFAULT      4096
#define QUOTA_MODELS_DEFAULT      256
/* These have no option: nobody needs more. */
#define QUOTA_VERIFIES_DEFAULT    4
#define QUOTA_PLANS_DEFAULT       4
#define QUOTA_DESCRIPTORS_DEFAULT 8192
#define QUOTA_MEMORY_DEFAULT_MIB  64
#define QUOTA_KEPT_DEFAULT        1024
/* Of all users who are limited. The listener takes 1024 connections: the rest is for those who administer. */
#define QUOTA_ALL_CONNECTIONS 960
#define QUOTA_ALL_MODELS      1024
#define QUOTA_ALL_MEMORY_MIB  256
#define QUOTA_ALL_KEPT        2048 /* of STORE_MAX: the rest is for models of those who administer */

#define QUOTA_DEFAULTS                                                                                                 \
    ((struct quota_limits){                                                                                            \
        .most =                                                                                                        \
            {                                                                                                          \
                [QUOTA_CONNECTIONS] = QUOTA_CONNECTIONS_DEFAULT,                                                       \
                [QUOTA_LOADS] = QUOTA_LOADS_DEFAULT,                                                                   \
                [QUOTA_LEASES] = QUOTA_LEASES_DEFAULT,                                                                 \
                [QUOTA_VERIFIES] = QUOTA_VERIFIES_DEFAULT,                                                             \
                [QUOTA_PLANS] = QUOTA_PLANS_DEFAULT,                                                                   \
                [QUOTA_MEMORY] = (uint64_t)QUOTA_MEMORY_DEFAULT_MIB << 20,                                             \
                [QUOTA_DESCRIPTORS] = QUOTA_DESCRIPTORS_DEFAULT,                                                       \
                [QUOTA_MODELS] = QUOTA_MODELS_DEFAULT,                                                                 \
                [QUOTA_BYTES] = UINT64_MAX,                                                                            \
                [QUOTA_KEPT] = QUOTA_KEPT_DEFAULT,                                                                     \
            },                                                                                                         \
        .all = {[QUOTA_CONNECTIONS] = QUOTA_ALL_CONNECTIONS,                                                           \
                [QUOTA_MODELS] = QUOTA_ALL_MODELS,                                                                     \
                [QUOTA_KEPT] = QUOTA_ALL_KEPT,                                                                         \
                [QUOTA_MEMORY] = (uint64_t)QUOTA_ALL_MEMORY_MIB << 20},                                                \
    })

struct quota;
struct quota_user;

/* What one user was charged with for one thing. All zero: nothing, charged to nobody. */
struct quota_charge {
    struct quota_user *user;
    enum quota_kind kind;
    uint64_t amount;
};

/* -ENOMEM. */
int quota_new(const struct quota_limits *limits, struct quota **ret);

/* Every charge was returned. NULL is fine. */
void quota_free(struct quota *quota);

/* Charges a user. Returns 0; -EDQUOT and the limit, if the user would have
 * more than that; -ENOMEM. */
int quota_take(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t amount, struct quota_charge *ret,
               uint64_t *ret_limit);

/* The same for what grows later: there is no limit yet. -ENOMEM. */
int quota_take_none(struct quota *quota, uid_t uid, enum quota_kind kind, struct quota_charge *ret);

/* Whether all that the user has of this kind is within the limits. If not, *ret_limit is the limit. */
bool quota_within(const struct quota_charge *charge, uint64_t *ret_limit);

/* Whether the user may have `more` beside what all charges of this kind amount to. If not, *ret_limit is the limit. A
 * charge to nobody may always grow. */
bool quota_may_grow(const struct quota_charge *charge, uint64_t more, uint64_t *ret_limit);

/* Sets what a charge amounts to, even beyond the limit: it was taken already. */
void quota_set(struct quota_charge *charge, uint64_t amount);

/* Ends a charge. Fine if it was returned, or is charged to nobody. */
void quota_return(struct quota_charge *charge);

/* As LimitExceeded names it: "user-connections", ... Static. */
const char *quota_name(enum quota_kind kind);
