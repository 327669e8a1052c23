#include "daemon/base/json_memory.h"
#include "daemon/base/log.h"
#include "daemon/wire/conn_state.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes that connections may have freed before the C library is told to give them back. Telling it costs some hundred
 * microseconds. */
#define CONNS_KEPT (8u << 20)

int conns_new(uv_loop_t *loop, const struct conn_hooks *hooks, void *context, struct quota *quota,
              struct counters *counters, struct conns **ret)
{
    struct conns *conns = calloc(1, sizeof(*conns));
    if (!conns)
        return -ENOMEM;
    conns->loop = loop;
    conns->hooks = hooks;
    conns->context = context;
    conns->quota = quota;
    conns->counters = counters;
    conns->next_id = 1;
    LIST_INIT(&conns->list);
    int r = turns_new(loop, &conns->turns);
    if (r < 0) {
        free(conns);
        return r;
    }
    json_memory_watch();
    *ret = conns;
    return 0;
}

void conns_set_closer(struct conns *conns, struct closer *closer)
{
    conns->closer = closer;
}

void conn_close_fd(const struct conn *conn, int fd)
{
    closer_close(conn->conns->closer, conn->peer->uid, fd);
}

static void conn_drop_fd(void *context, int fd)
{
    conn_close_fd(context, fd);
}

static void conns_check_closed(struct conns *conns)
{
    if (!conns->closing || conns->count > 0)
        return;
    void (*closed)(void *) = conns->closed;
    void *context = conns->closed_context;
    turns_close(conns->turns);
    free(conns);
    closed(context);
}

size_t conns_count(const struct conns *conns)
{
    return conns->count;
}

static void conn_free(struct conn *conn)
{
    quota_return(&conn->connection);
    quota_return(&conn->memory);
    quota_return(&conn->descriptors);
    turn_end(&conn->turn);
    cJSON_Delete(conn->message);
    cJSON_Delete(conn->no_parameters);
    frame_reader_free(conn->reader);
    peer_unref(conn->peer);
    frame_writer_free(conn->writer);
    if (conn->socket >= 0)
        close(conn->socket);
    free(conn);
}

void conns_give_back(struct conns *conns)
{
    if (conns->freed < CONNS_KEPT)
        return;
    conns->freed = 0;
    (void)malloc_trim(0);
}

static void conn_handle_closed(uv_handle_t *handle)
{
    struct conn *conn = handle->data;
    struct conns *conns = conn->conns;
    if (--conn->handles > 0)
        return;
    LIST_REMOVE(conn, link);
    conns->count--;
    conns->freed += conn->memory.amount;
    conn_free(conn);
    conns_give_back(conns);
    conns_check_closed(conns);
}

void conn_let_go(struct conn *conn)
{
    struct conns *conns = conn->conns;
    while (conn->opened && conns->hooks->closed && !conns->hooks->closed(conn, conns->context)) {
        if (!conns->closing) {
            turn_wait(&conn->turn);
            return;
        }
    }
    turn_end(&conn->turn);
    conn->handles = 2;
    uv_close((uv_handle_t *)&conn->poll, conn_handle_closed);
    uv_close((uv_handle_t *)&conn->deadline, conn_handle_closed);
    /* Here, in the connection's turn: if very many close at the same time, the loop calls conn_handle_closed() for all
     * of them in one go. To close a socket whose client has not read everything takes long, too. */
    frame_writer_free(conn->writer);
    conn->writer = NULL;
    close(conn->socket);
    conn->socket = -1;
}

void conn_close(struct conn *conn)
{
    if (conn->state == CONN_CLOSED)
        return;
    conn_move(conn, CONN_CLOSED);
    log_debug("conn=%" PRIu64 " closed", conn->id);
    call_abandon(conn);
    if (conn->held)
        frame_message_close_fds(&conn->frame);
    conn->held = false;
    uv_poll_stop(&conn->poll);
    conn_let_go(conn);
}

void conns_release(struct conns *conns)
{
    struct conn *conn;
    LIST_FOREACH(conn, &conns->list, link)
    {
        if (conn->held)
            turn_wait(&conn->turn);
    }
}

void conns_close(struct conns *conns, void (*closed)(void *context), void *context)
{
    conns->closing = true;
    conns->closed = closed;
    conns->closed_context = context;
    struct conn *conn;
    LIST_FOREACH(conn, &conns->list, link)
    {
        call_cut(conn, WIRE_ShuttingDown);
        /* Sends what is queued already, as far as that goes without waiting. */
        if (conn->state != CONN_CLOSED)
            (void)frame_writer_flush(conn->writer, conn->socket);
        else if (conn->handles == 0)
            conn_let_go(conn);
        conn_close(conn);
    }
    conns_check_closed(conns);
}

void conns_go_on(struct conns *conns)
{
    if (!conns || !conns->some_wait)
        return;
    conns->some_wait = false;
    struct conn *conn, *next;
    for (conn = LIST_FIRST(&conns->list); conn; conn = next) {
        next = LIST_NEXT(conn, link);
        conn_poll(conn);
    }
}

void conn_refuse(struct conns *conns, int socket, cJSON *parameters)
{
    char *text = call_error_text(conns, WIRE_LimitExceeded, parameters);
    if (text)
        (void)!send(socket, text, strlen(text) + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    cJSON_free(text);
}

/* Charges the user for the connection, and tells a client whose user has too many. */
static int conn_charge(struct conn *conn, uid_t uid)
{
    struct quota *quota = conn->conns->quota;
    uint64_t limit;
    int r = quota_take(quota, uid, QUOTA_CONNECTIONS, 1, &conn->connection, &limit);
    if (r == -EDQUOT)
        conn_refuse(conn->conns, conn->socket, error_limit(quota_name(QUOTA_CONNECTIONS), limit));
    if (r == 0)
        r = quota_take_none(quota, uid, QUOTA_MEMORY, &conn->memory);
    if (r == 0)
        r = quota_take_none(quota, uid, QUOTA_DESCRIPTORS, &conn->descriptors);
    return r;
}

int conn_open(struct conns *conns, int socket)
{
    struct conn *conn = calloc(1, sizeof(*conn));
    if (!conn) {
        close(socket);
        return -ENOMEM;
    }
    conn->socket = socket;
    conn->conns = conns;

    int r = peer_read(socket, &conn->peer);
    if (r == 0)
        r = conn_charge(conn, conn->peer->uid);
    if (r == 0)
        r = turn_begin(conns->turns, &conn->turn, conn->peer->uid, conn_run);
    if (r == 0)
        r = frame_reader_new(CONN_REQUEST_MAX, &conn->reader);
    if (r == 0)
        r = frame_writer_new(CONN_QUEUE_MAX, &conn->writer);
    if (r == 0)
        frame_reader_set_drop(conn->reader, conn_drop_fd, conn);
    if (r == 0 && !(conn->no_parameters = cJSON_CreateObject()))
        r = -ENOMEM;
    conn->id = conns->next_id++;
    if (r == 0)
        r = uv_poll_init(conns->loop, &conn->poll, socket);
    if (r < 0) {
        conn_free(conn);
        return r;
    }
    uv_timer_init(conns->loop, &conn->deadline);
    conn->poll.data = conn->deadline.data = conn;
    LIST_INSERT_HEAD(&conns->list, conn, link);
    conns->count++;
    r = conns->hooks->opened ? conns->hooks->opened(conn, conns->context) : 0;
    conn->opened = r == 0;
    if (r < 0) {
        conn_close(conn);
        return r;
    }
    log_debug("conn=%" PRIu64 " pid=%d uid=%u opened", conn->id, (int)conn->peer->pid, (unsigned)conn->peer->uid);
    conn_poll(conn);
    return 0;
}

pid_t conn_pid(const struct conn *conn)
{
    return conn->peer->pid;
}

uid_t conn_uid(const struct conn *conn)
{
    return conn->peer->uid;
}

struct peer *conn_peer(const struct conn *conn)
{
    return conn->peer;
}

uint64_t conn_id(const struct conn *conn)
{
    return conn->id;
}

void conn_set_data(struct conn *conn, void *data)
{
    conn->data = data;
}

void *conn_data(const struct conn *conn)
{
    return conn->data;
}
