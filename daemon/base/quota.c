#include "daemon/base/quota.h"

#include "daemon/base/trust.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/queue.h>

/* A user who has something. Freed with the last charge. */
struct quota_user {
    LIST_ENTRY(quota_user) link;
    struct quota *quota;
    bool trusted;
    uid_t uid;
    size_t n_charges;
    uint64_t has[QUOTA_KINDS];
};

struct quota {
    struct quota_limits limits;
    uint64_t all[QUOTA_KINDS];     /* what the users who are limited have together */
    LIST_HEAD(, quota_user) users; /* few at a time: a list is quick enough */
};

int quota_new(const struct quota_limits *limits, struct quota **ret)
{
    struct quota *quota = calloc(1, sizeof(*quota));
    if (!quota)
        return -ENOMEM;
    quota->limits = *limits;
    LIST_INIT(&quota->users);
    *ret = quota;
    return 0;
}

void quota_free(struct quota *quota)
{
    assert(!quota || LIST_EMPTY(&quota->users));
    free(quota);
}

/* The user's entry, made if there is none. NULL if memory is short. */
static struct quota_user *user_get(struct quota *quota, uid_t uid)
{
    struct quota_user *user;
    LIST_FOREACH(user, &quota->users, link)
    {
        if (user->uid == uid)
            return user;
    }
    user = calloc(1, sizeof(*user));
    if (!user)
        return NULL;
    user->uid = uid;
    user->quota = quota;
    user->trusted = trusted_user(uid);
    LIST_INSERT_HEAD(&quota->users, user, link);
    return user;
}

static void user_put(struct quota_user *user)
{
    if (user->n_charges > 0)
        return;
    LIST_REMOVE(user, link);
    free(user);
}

static bool user_may_have(const struct quota_user *user, enum quota_kind kind, uint64_t more, uint64_t *ret_limit)
{
    if (user->trusted)
        return true;
    /* At most as much as stays free for the others: others + 2 * own <= all. */
    const struct quota *quota = user->quota;
    const uint64_t has = user->has[kind], all = quota->limits.all[kind], others = quota->all[kind] - has;
    const uint64_t share = all == 0 ? UINT64_MAX : all > others ? (all - others) / 2 : 0;
    const uint64_t most = min_u64(quota->limits.most[kind], share);
    if (has <= most && more <= most - has)
        return true;
    *ret_limit = most;
    return false;
}

int quota_take(struct quota *quota, uid_t uid, enum quota_kind kind, uint64_t amount, struct quota_charge *ret,
               uint64_t *ret_limit)
{
    struct quota_user *user = user_get(quota, uid);
    if (!user)
        return -ENOMEM;
    if (!user_may_have(user, kind, amount, ret_limit)) {
        user_put(user);
        return -EDQUOT;
    }
    user->n_charges++;
    *ret = (struct quota_charge){user, kind, 0};
    quota_set(ret, amount);
    return 0;
}

int quota_take_none(struct quota *quota, uid_t uid, enum quota_kind kind, struct quota_charge *ret)
{
    struct quota_user *user = user_get(quota, uid);
    if (!user)
        return -ENOMEM;
    user->n_charges++;
    *ret = (struct quota_charge){user, kind, 0};
    return 0;
}

bool quota_within(const struct quota_charge *charge, uint64_t *ret_limit)
{
    return quota_may_grow(charge, 0, ret_limit);
}

bool quota_may_grow(const struct quota_charge *charge, uint64_t more, uint64_t *ret_limit)
{
    return !charge->user || user_may_have(charge->user, charge->kind, more, ret_limit);
}

void quota_set(struct quota_charge *charge, uint64_t amount)
{
    if (!charge->user)
        return;
    charge->user->has[charge->kind] += amount - charge->amount;
    if (!charge->user->trusted)
        charge->user->quota->all[charge->kind] += amount - charge->amount;
    charge->amount = amount;
}

void quota_return(struct quota_charge *charge)
{
    struct quota_user *user = charge->user;
    if (!user)
        return;
    quota_set(charge, 0);
    *charge = (struct quota_charge){0};
    user->n_charges--;
    user_put(user);
}

const char *quota_name(enum quota_kind kind)
{
    static const char *const names[] = {
        [QUOTA_CONNECTIONS] = "user-connections",
        [QUOTA_LOADS] = "user-loads",
        [QUOTA_LEASES] = "user-leases",
        [QUOTA_VERIFIES] = "user-verifies",
        [QUOTA_PLANS] = "user-plans",
        [QUOTA_DESCRIPTORS] = "user-descriptors",
        [QUOTA_MEMORY] = "user-memory",
        [QUOTA_MODELS] = "user-models",
        [QUOTA_BYTES] = "user-bytes",
        [QUOTA_KEPT] = "user-kept",
    };
    return names[kind];
}
