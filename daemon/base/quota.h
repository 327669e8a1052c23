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
    QUOTA_VERIFIES, /* under way */
    QUOTA_PLANS,    /* under way; each has a worker read a header */
    QUOTA_REPLIES,  /* bytes of replies that wait for the user's clients */
    QUOTA_FILES,    /* open for loads that were not asked for yet */
    QUOTA_BYTES,    /* of the models that the user loaded, on all devices */
    QUOTA_KINDS,
};

/* The most that one user may have of each. */
struct quota_limits {
    uint64_t most[QUOTA_KINDS];
};

/* The defaults. --help prints the first three, and the manual pages have them; a test compares. */
#define QUOTA_CONNECTIONS_DEFAULT 256
#define QUOTA_LOADS_DEFAULT       16
#define QUOTA_LEASES_DEFAULT      4096
/* These have no option: nobody needs more. */
#define QUOTA_VERIFIES_DEFAULT    4
#define QUOTA_PLANS_DEFAULT       4
#define QUOTA_FILES_DEFAULT       8192
#define QUOTA_REPLIES_DEFAULT_MIB 64

#define QUOTA_DEFAULTS                                                                                                 \
    ((struct quota_limits){{                                                                                           \
        [QUOTA_CONNECTIONS] = QUOTA_CONNECTIONS_DEFAULT,                                                               \
        [QUOTA_LOADS] = QUOTA_LOADS_DEFAULT,                                                                           \
        [QUOTA_LEASES] = QUOTA_LEASES_DEFAULT,                                                                         \
        [QUOTA_VERIFIES] = QUOTA_VERIFIES_DEFAULT,                                                                     \
        [QUOTA_PLANS] = QUOTA_PLANS_DEFAULT,                                                                           \
        [QUOTA_FILES] = QUOTA_FILES_DEFAULT,                                                                           \
        [QUOTA_REPLIES] = (uint64_t)QUOTA_REPLIES_DEFAULT_MIB << 20,                                                   \
        [QUOTA_BYTES] = UINT64_MAX,                                                                                    \
    }})

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

/* Charges a user. `amount` may be 0: for what grows later. Returns 0; -EDQUOT and the limit, if the user would have
 * more than that; -ENOMEM. */
int quota_take(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t amount, struct quota_charge *ret,
               uint64_t *ret_limit);

/* Whether the user may have `more` beside what all charges of this kind amount to. If not, *ret_limit is the limit. A
 * charge to nobody may always grow. */
bool quota_may_grow(const struct quota_charge *charge, uint64_t more, uint64_t *ret_limit);

/* Sets what a charge amounts to, even beyond the limit: it was taken already. */
void quota_set(struct quota_charge *charge, uint64_t amount);

/* Ends a charge. Fine if it was returned, or is charged to nobody. */
void quota_return(struct quota_charge *charge);

/* As LimitExceeded names it: "user-connections", ... Static. */
const char *quota_name(enum quota_kind kind);
