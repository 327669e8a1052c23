#include "daemon/session/session.h"

#include "daemon/base/json_text.h"
#include "daemon/model/model.h"
#include "proto/array.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct session {
    struct lease_holder holder;
    LIST_HEAD(, session_tie) ties;
    int *files; /* open, for the next Load or Plan */
    size_t n_files;
    struct quota_charge charge; /* for `files` */
};

int session_opened(struct conn *conn, void *context)
{
    (void)context;
    struct session *session = calloc(1, sizeof(*session));
    if (!session)
        return -ENOMEM;
    LIST_INIT(&session->holder.leases);
    LIST_INIT(&session->ties);
    session->holder.pid = conn_pid(conn);
    session->holder.uid = conn_uid(conn);
    conn_set_data(conn, session);
    return 0;
}

static void drop_files(const struct conn *conn, struct session *session)
{
    while (session->n_files > 0)
        conn_close_fd(conn, session->files[--session->n_files]);
    free(session->files);
    session->files = NULL;
    quota_return(&session->charge);
}

/* Leases are last, and may take several turns: each one that ends is told to all who watch. */
bool session_closed(struct conn *conn, void *context)
{
    (void)context;
    struct session *session = conn_data(conn);
    struct session_tie *tie;
    while ((tie = LIST_FIRST(&session->ties))) {
        LIST_REMOVE(tie, link);
        tie->cut(tie);
    }
    drop_files(conn, session);
    const uint64_t began = uv_hrtime();
    while (!LIST_EMPTY(&session->holder.leases)) {
        if (uv_hrtime() - began > CONN_TURN_NS)
            return false;
        lease_end(LIST_FIRST(&session->holder.leases));
    }
    free(session);
    return true;
}

void session_tie(struct conn *conn, struct session_tie *tie)
{
    struct session *session = conn_data(conn);
    LIST_INSERT_HEAD(&session->ties, tie, link);
}

void session_untie(struct session_tie *tie)
{
    LIST_REMOVE(tie, link);
}

struct session_tie *session_find_tie(const struct conn *conn, uint64_t id)
{
    const struct session *session = conn_data(conn);
    struct session_tie *tie;
    LIST_FOREACH(tie, &session->ties, link)
    {
        if (tie->id == id)
            return tie;
    }
    return NULL;
}

int session_add_files(struct conn *conn, struct quota *quota, const int *fds, size_t n, size_t most,
                      uint64_t *ret_limit)
{
    struct session *session = conn_data(conn);
    int r = session->n_files + n > most ? -E2BIG : 0;
    if (r == 0 && !session->charge.user)
        r = quota_take_none(quota, conn_uid(conn), QUOTA_DESCRIPTORS, &session->charge);
    if (r == 0 && !quota_may_grow(&session->charge, n, ret_limit))
        r = -EDQUOT;
    if (r == 0)
        r = array_resize(&session->files, session->n_files + n, sizeof(*session->files));
    if (r < 0) {
        for (size_t i = 0; i < n; i++)
            conn_close_fd(conn, fds[i]);
        return r;
    }
    memcpy(session->files + session->n_files, fds, n * sizeof(*fds));
    session->n_files += n;
    quota_set(&session->charge, session->n_files);
    return (int)session->n_files;
}

size_t session_take_files(struct conn *conn, int *fds)
{
    struct session *session = conn_data(conn);
    const size_t n = session->n_files;
    if (n > 0)
        memcpy(fds, session->files, n * sizeof(*fds));
    session->n_files = 0;
    drop_files(conn, session);
    return n;
}

struct lease_holder *session_holder(const struct conn *conn)
{
    struct session *session = conn_data(conn);
    return &session->holder;
}

/* The name by which the client knows the model, also if the model has lost this name. */
static const char *known_name(const struct lease *lease, char name[MODEL_NAME_SIZE])
{
    strcpy(name, lease->name ? lease->name : lease->model->name);
    if (!lease->name)
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

static bool lease_has_to_tell(const struct lease *lease)
{
    return !lease->told && lease_void(lease);
}

bool session_has_to_tell(const struct conn *conn)
{
    const struct lease *lease;
    LIST_FOREACH(lease, &session_holder(conn)->leases, of_holder)
    {
        if (lease_has_to_tell(lease))
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
        if (!lease_has_to_tell(lease))
            continue;
        lease->telling = true;
        if (!names)
            names = cJSON_AddArrayToObject(parameters, "draining");
        char name[MODEL_NAME_SIZE];
        if (!names_have(names, known_name(lease, name)))
            json_append(names, cJSON_CreateString(name));
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
