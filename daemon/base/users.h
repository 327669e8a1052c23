/* What one user may have of the daemon at the same time, so that nobody can take it from the others. Root and the
 * daemon's own user are not bounded.
 *
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct call;
struct server;

struct user_limits {
    unsigned connections;
    unsigned loads; /* under way */
    unsigned leases;
    uint64_t bytes; /* of all models that the user loaded, on all devices */
};

/* What a user may have if nothing else is said. */
#define USER_CONNECTIONS 256u
#define USER_LOADS       16u
#define USER_LEASES      4096u
#define USER_VERIFIES    4u                   /* no option: nobody needs more */
#define USER_PLANS       4u                   /* the same: each has a worker read a header */
#define USER_REPLIES     ((uint64_t)64 << 20) /* no option either: bytes of long ones that wait for all its clients */
#define USER_BYTES       UINT64_MAX

enum user_limit {
    LIMIT_CONNECTIONS,
    LIMIT_LOADS,
    LIMIT_LEASES,
    LIMIT_VERIFIES,
    LIMIT_PLANS,
    LIMIT_REPLIES,
    LIMIT_BYTES,
};

/* Rules the machine or the daemon: root, and the user that the daemon runs as, which may be root too. */
bool user_trusted(uid_t uid);

/* Whether the user may have `more` of it. Where not, *ret_value is the limit. */
bool user_may(const struct server *server, uid_t uid, enum user_limit limit, uint64_t more, uint64_t *ret_value);

/* Whether a long reply, of so many bytes, may be queued for the caller. Where not, the call was failed. */
bool user_may_be_told(const struct server *server, struct call *call, uint64_t bytes);

/* As LimitExceeded tells it: "user-connections", ... Static. */
const char *user_limit_name(enum user_limit limit);
