#include "daemon/session/session.h"

#include "daemon/model/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct session {
    struct lease_holder holder;
};

int session_opened(struct conn *conn, void *context)
{
    (void)context;
    struct session *session = calloc(1, sizeof(*session));
    if (!session)
        return -ENOMEM;
    LIST_INIT(&session->holder.leases);
    session->holder.pid = conn_pid(conn);
    session->holder.uid = conn_uid(conn);
    conn_set_data(conn, session);
    return 0;
}

void session_closed(struct conn *conn, void *context)
{
    (void)context;
    struct session *session = conn_data(conn);
    while (!LIST_EMPTY(&session->holder.leases))
        lease_end(LIST_FIRST(&session->holder.leases));
    free(session);
}

struct lease_holder *session_holder(const struct conn *conn)
{
    struct session *session = conn_data(conn);
    return &session->holder;
}

/* What the client knows the model by, whatever has become of its name. */
static const char *known_name(const struct lease *lease, char name[MODEL_NAME_SIZE])
{
    strcpy(name, lease->name ? lease->name : lease->model->name);
    name[strcspn(name, "#")] = '\0';
    return name;
}

/* A client with several leases on a model is told its name once. */
static bool names_have(const cJSON *names, const char *name)
{
    const cJSON *element;
    cJSON_ArrayForEach (element, names) {
        if (strcmp(element->valuestring, name) == 0)
            return true;
    }
    return false;
}

void session_replying(struct conn *conn, cJSON *parameters)
{
    cJSON *names = NULL;
    struct lease *lease;
    LIST_FOREACH(lease, &session_holder(conn)->leases, of_holder)
    {
        if (lease->told || !lease_void(lease))
            continue;
        lease->telling = true;
        if (!names)
            names = cJSON_AddArrayToObject(parameters, "draining");
        char name[MODEL_NAME_SIZE];
        if (!names_have(names, known_name(lease, name)))
            cJSON_AddItemToArray(names, cJSON_CreateString(name));
    }
}

void session_replied(struct conn *conn, bool queued)
{
    struct lease *lease;
    LIST_FOREACH(lease, &session_holder(conn)->leases, of_holder)
    {
        lease->told |= lease->telling && queued;
        lease->telling = false;
    }
}
