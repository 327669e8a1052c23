#include "daemon/users.h"

#include "daemon/conn.h"
#include "daemon/load.h"
#include "daemon/registry.h"
#include "daemon/server.h"
#include "daemon/verify.h"

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

bool user_may(const struct server *server, uid_t uid, enum user_limit limit, uint64_t more, uint64_t *ret_value)
{
    if (uid == 0 || uid == getuid())
        return true;
    uint64_t has = 0;
    switch (limit) {
    case LIMIT_CONNECTIONS:
        has = conns_count_of(server->conns, uid);
        *ret_value = server->limits.connections;
        break;
    case LIMIT_LOADS:
        has = loads_of(server, uid);
        *ret_value = server->limits.loads;
        break;
    case LIMIT_LEASES:
        has = leases_of(server, uid);
        *ret_value = server->limits.leases;
        break;
    case LIMIT_VERIFIES:
        has = verifies_of(server, uid);
        *ret_value = USER_VERIFIES;
        break;
    case LIMIT_BYTES:
        has = bytes_of(server, uid);
        *ret_value = server->limits.bytes;
        break;
    }
    return has <= *ret_value && more <= *ret_value - has;
}

const char *user_limit_name(enum user_limit limit)
{
    static const char *const names[] = {
        [LIMIT_CONNECTIONS] = "user-connections", [LIMIT_LOADS] = "user-loads", [LIMIT_LEASES] = "user-leases",
        [LIMIT_VERIFIES] = "user-verifies",       [LIMIT_BYTES] = "user-bytes",
    };
    return names[limit];
}
