#include "daemon/base/users.h"

#include "daemon/wire/conn.h"
#include "daemon/session/describe.h"
#include "daemon/load/load.h"
#include "daemon/api/methods_plan.h"
#include "daemon/model/registry.h"
#include "daemon/server.h"
#include "daemon/api/verify.h"

#include <assert.h>
#include <unistd.h>

static uint64_t loads_of(const struct server *server, uid_t uid)
{
    uint64_t n = 0;
    for (struct load *load = TAILQ_FIRST(&server->loads); load; load = load_next(load))
        n += load_uid(load) == uid;
    return n;
}

static uint64_t verifies_of(const struct server *server, uid_t uid)
{
    uint64_t n = 0;
    for (struct verify *verify = TAILQ_FIRST(&server->verifies); verify; verify = verify_next(verify))
        n += verify_uid(verify) == uid;
    return n;
}

/* Of the models that the user loaded. */
static uint64_t bytes_of(const struct server *server, uid_t uid)
{
    uint64_t n = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &server->registry.models, link)
    {
        n += model->uid == uid ? model->reserved + model->charged : 0;
    }
    return n;
}

static uint64_t leases_of(const struct server *server, uid_t uid)
{
    uint64_t n = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &server->registry.models, link)
    {
        const struct lease *lease;
        LIST_FOREACH(lease, &model->leases, of_model)
        {
            n += conn_uid(lease->conn) == uid;
        }
    }
    return n;
}

bool user_trusted(uid_t uid)
{
    return uid == 0 || uid == getuid();
}

/* How much of it the user has, and may have. */
static uint64_t user_has(const struct server *server, uid_t uid, enum user_limit limit, uint64_t *ret_most)
{
    switch (limit) {
    case LIMIT_CONNECTIONS:
        *ret_most = server->limits.connections;
        return conns_count_of(server->conns, uid);
    case LIMIT_LOADS:
        *ret_most = server->limits.loads;
        return loads_of(server, uid);
    case LIMIT_LEASES:
        *ret_most = server->limits.leases;
        return leases_of(server, uid);
    case LIMIT_VERIFIES:
        *ret_most = USER_VERIFIES;
        return verifies_of(server, uid);
    case LIMIT_PLANS:
        *ret_most = USER_PLANS;
        return plans_of(server, uid);
    case LIMIT_REPLIES:
        *ret_most = USER_REPLIES;
        return conns_queued_of(server->conns, uid);
    case LIMIT_BYTES:
        *ret_most = server->limits.bytes;
        return bytes_of(server, uid);
    }
    assert(!"a limit");
    *ret_most = 0;
    return 0;
}

bool user_may(const struct server *server, uid_t uid, enum user_limit limit, uint64_t more, uint64_t *ret_value)
{
    if (user_trusted(uid))
        return true;
    uint64_t most, has = user_has(server, uid, limit, &most);
    if (has <= most && more <= most - has)
        return true;
    *ret_value = most;
    return false;
}

bool user_may_be_told(const struct server *server, struct call *call, uint64_t bytes)
{
    uint64_t limit = CONN_QUEUE_MAX;
    if (bytes > CONN_QUEUE_MAX / 2)
        call_fail(call, WIRE_LimitExceeded, describe_limit("reply", limit));
    else if (!user_may(server, conn_uid(call->conn), LIMIT_REPLIES, bytes, &limit))
        call_fail(call, WIRE_LimitExceeded, describe_limit(user_limit_name(LIMIT_REPLIES), limit));
    else
        return true;
    return false;
}

const char *user_limit_name(enum user_limit limit)
{
    static const char *const names[] = {
        [LIMIT_CONNECTIONS] = "user-connections",
        [LIMIT_LOADS] = "user-loads",
        [LIMIT_LEASES] = "user-leases",
        [LIMIT_VERIFIES] = "user-verifies",
        [LIMIT_PLANS] = "user-plans",
        [LIMIT_REPLIES] = "user-replies",
        [LIMIT_BYTES] = "user-bytes",
    };
    return names[limit];
}
