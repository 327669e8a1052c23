#include "daemon/conn.h"

#include "daemon/log.h"
#include "daemon/model.h"
#include "proto/frame.h"
#include "proto/json_check.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum conn_state {
    CONN_OPEN,
    CONN_ENDING,
    CONN_BROKEN,
    CONN_CLOSED,
};

struct conn {
    LIST_ENTRY(conn) link;
    struct conns *conns;
    uv_poll_t poll;
    uv_timer_t deadline; /* of the call */
    unsigned handles;    /* of the two, that the loop has not let go of */
    int socket;
    uint64_t id;
    pid_t pid;
    uid_t uid;
    enum conn_state state;
    bool peer_done; /* the other side sends no more, and all that it sent was read */
    bool hung_up;   /* it sends no more, but the buffer is full of what it sent */
    struct frame_reader *reader;
    struct frame_writer *writer;

    bool in_call;
    bool in_dispatch; /* messages are being taken from the buffer */
    bool again;       /* a call ended later; look at the buffer when the loop comes round */
    struct call call;
    cJSON *message; /* what the call's strings and parameters are part of */
    struct frame_message frame;
    cJSON *no_parameters; /* an empty object, for calls without */

    struct lease_list leases;
};

struct conns {
    LIST_HEAD(, conn) list;
    size_t count;
    uint64_t next_id;
    uv_loop_t *loop;
    call_fn *dispatch;
    conn_admit_fn *admit;
    void *context;
    void (*closed)(void *context);
    void *closed_context;
    bool closing;
};

static void conn_poll(struct conn *conn);
static void conn_process(struct conn *conn);

int conns_new(uv_loop_t *loop, call_fn *dispatch, conn_admit_fn *admit, void *context, struct conns **ret)
{
    struct conns *conns = calloc(1, sizeof(*conns));
    if (!conns)
        return -ENOMEM;
    conns->loop = loop;
    conns->dispatch = dispatch;
    conns->admit = admit;
    conns->context = context;
    conns->next_id = 1;
    LIST_INIT(&conns->list);
    *ret = conns;
    return 0;
}

static void conns_check_closed(struct conns *conns)
{
    if (!conns->closing || conns->count > 0)
        return;
    void (*closed)(void *) = conns->closed;
    void *context = conns->closed_context;
    free(conns);
    closed(context);
}

size_t conns_count(const struct conns *conns)
{
    return conns->count;
}

size_t conns_count_of(const struct conns *conns, uid_t uid)
{
    size_t n = 0;
    const struct conn *conn;
    LIST_FOREACH(conn, &conns->list, link)
    {
        n += conn->uid == uid;
    }
    return n;
}

static void conn_free(struct conn *conn)
{
    cJSON_Delete(conn->message);
    cJSON_Delete(conn->no_parameters);
    frame_reader_free(conn->reader);
    frame_writer_free(conn->writer);
    if (conn->socket >= 0)
        close(conn->socket);
    free(conn);
}

static void conn_handle_closed(uv_handle_t *handle)
{
    struct conn *conn = handle->data;
    struct conns *conns = conn->conns;
    if (--conn->handles > 0)
        return;
    LIST_REMOVE(conn, link);
    conns->count--;
    conn_free(conn);
    conns_check_closed(conns);
}

/* Lets go of the connection: what it waits for, what it holds. Its memory goes when the loop has let go of it. */
static void conn_close(struct conn *conn)
{
    if (conn->state == CONN_CLOSED)
        return;
    conn->state = CONN_CLOSED;
    log_debug("conn=%" PRIu64 " closed", conn->id);
    if (conn->in_call) {
        conn->in_call = false;
        if (conn->call.abandoned)
            conn->call.abandoned(&conn->call);
    }
    while (!LIST_EMPTY(&conn->leases))
        lease_end(LIST_FIRST(&conn->leases));
    uv_poll_stop(&conn->poll);
    conn->handles = 2;
    uv_close((uv_handle_t *)&conn->poll, conn_handle_closed);
    uv_close((uv_handle_t *)&conn->deadline, conn_handle_closed);
}

void conns_close(struct conns *conns, void (*closed)(void *context), void *context)
{
    conns->closing = true;
    conns->closed = closed;
    conns->closed_context = context;
    struct conn *conn;
    LIST_FOREACH(conn, &conns->list, link)
    {
        /* What was answered already gets its chance to leave. */
        if (conn->state != CONN_CLOSED)
            (void)frame_writer_flush(conn->writer, conn->socket);
        conn_close(conn);
    }
    conns_check_closed(conns);
}

/* Gives the connection up without closing it now: whoever sends a reply is in the middle of something, and closing ends
 * leases and calls. The loop sees the socket's end, and closes. */
static void conn_break(struct conn *conn)
{
    if (conn->state != CONN_OPEN && conn->state != CONN_ENDING)
        return;
    conn->state = CONN_BROKEN;
    shutdown(conn->socket, SHUT_RDWR);
    conn_poll(conn);
}

/* Sends what can be sent now. */
static void conn_flush(struct conn *conn)
{
    if (conn->state != CONN_OPEN && conn->state != CONN_ENDING)
        return;
    int r = frame_writer_flush(conn->writer, conn->socket);
    if (r < 0 && r != -EAGAIN) {
        log_debug("conn=%" PRIu64 " cannot be written to: %s", conn->id, strerror(-r));
        conn_break(conn);
        return;
    }
    if (conn->state == CONN_ENDING && r == 0) {
        conn_break(conn);
        return;
    }
    conn_poll(conn);
}

static void conn_send(struct conn *conn, cJSON *message, const int *fds, size_t n_fds)
{
    if (conn->state != CONN_OPEN) {
        cJSON_Delete(message);
        return;
    }
    char *text = message ? cJSON_PrintUnformatted(message) : NULL;
    cJSON_Delete(message);
    int r = text ? frame_writer_put(conn->writer, text, strlen(text), fds, n_fds) : -ENOMEM;
    cJSON_free(text);
    if (r == -ENOBUFS) {
        static const char too_long[] = "{\"error\":\"io.rocmforge.LimitExceeded\","
                                       "\"parameters\":{\"limit\":\"reply\",\"value\":33554432}}";
        _Static_assert(CONN_QUEUE_MAX == 33554432, "the text above says so");
        r = frame_writer_put(conn->writer, too_long, strlen(too_long), NULL, 0);
    }
    if (r < 0) {
        /* A reply that is lost would leave the client waiting for ever; it had better see the end. */
        log_warning("conn=%" PRIu64 " pid=%d a reply cannot be queued: %s; closing", conn->id, (int)conn->pid,
                    strerror(-r));
        conn_break(conn);
        return;
    }
    conn_flush(conn);
}

/* {"error": ..., "parameters": {...}} */
static cJSON *error_message(enum wire_error error, cJSON *parameters)
{
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "error", wire_error_name(error));
    cJSON_AddItemToObject(message, "parameters", parameters ? parameters : cJSON_CreateObject());
    return message;
}

/* Several leases on one model make one name. */
static bool names_have(const cJSON *names, const char *name)
{
    const cJSON *element;
    cJSON_ArrayForEach (element, names) {
        if (strcmp(element->valuestring, name) == 0)
            return true;
    }
    return false;
}

/* Adds the names of models that this client is asked to let go, and was not told of yet. */
static void add_draining(struct conn *conn, cJSON *parameters)
{
    cJSON *names = NULL;
    struct lease *lease;
    LIST_FOREACH(lease, &conn->leases, of_conn)
    {
        if (lease->told || lease->model->state != MODEL_DRAINING)
            continue;
        lease->told = true;
        if (!names)
            names = cJSON_AddArrayToObject(parameters, "draining");
        if (!names_have(names, lease->model->name))
            cJSON_AddItemToArray(names, cJSON_CreateString(lease->model->name));
    }
}

static cJSON *reply_message(struct conn *conn, cJSON *parameters, bool continues)
{
    cJSON *message = cJSON_CreateObject();
    if (!parameters)
        parameters = cJSON_CreateObject();
    add_draining(conn, parameters);
    cJSON_AddItemToObject(message, "parameters", parameters);
    if (continues)
        cJSON_AddTrueToObject(message, "continues");
    return message;
}

/* Says what is wrong with the stream, and ends the connection. */
static void conn_end(struct conn *conn, const char *reason)
{
    if (conn->state != CONN_OPEN)
        return;
    log_info("conn=%" PRIu64 " pid=%d uid=%u ends: %s", conn->id, (int)conn->pid, (unsigned)conn->uid, reason);
    cJSON *parameters = cJSON_CreateObject();
    cJSON_AddStringToObject(parameters, "reason", reason);
    char *text = NULL;
    cJSON *message = error_message(WIRE_InvalidMessage, parameters);
    text = cJSON_PrintUnformatted(message);
    cJSON_Delete(message);
    int r = text ? frame_writer_put(conn->writer, text, strlen(text), NULL, 0) : -ENOMEM;
    cJSON_free(text);
    conn->state = CONN_ENDING;
    if (r < 0)
        conn_break(conn);
    else
        conn_flush(conn);
}

/* A call is over: its message goes, and the next one's turn comes. */
static void call_end(struct call *call)
{
    struct conn *conn = call->conn;
    conn->in_call = false;
    uv_timer_stop(&conn->deadline);
    cJSON_Delete(conn->message);
    conn->message = NULL;
    if (conn->state == CONN_OPEN && !conn->in_dispatch) {
        /* Not now: whoever answered has more to do before the next request may change the world. */
        conn->again = true;
        conn_poll(conn);
    }
}

void call_reply(struct call *call, cJSON *parameters, const int *fds, size_t n_fds)
{
    struct conn *conn = call->conn;
    assert(conn->in_call);
    if (call->oneway)
        cJSON_Delete(parameters);
    else
        conn_send(conn, reply_message(conn, parameters, false), fds, n_fds);
    call_end(call);
}

bool call_continue(struct call *call, cJSON *parameters)
{
    struct conn *conn = call->conn;
    assert(conn->in_call && call->more);
    if (frame_writer_pending(conn->writer) > CONN_QUEUE_HIGH) {
        cJSON_Delete(parameters);
        return false;
    }
    conn_send(conn, reply_message(conn, parameters, true), NULL, 0);
    return true;
}

bool call_continue_all(struct call *call, cJSON *parameters)
{
    struct conn *conn = call->conn;
    assert(conn->in_call && call->more);
    if (frame_writer_pending(conn->writer) > CONN_WATCH_MAX) {
        cJSON_Delete(parameters);
        if (conn->state == CONN_OPEN)
            log_info("conn=%" PRIu64 " pid=%d does not read what it watches; closing", conn->id, (int)conn->pid);
        conn_break(conn);
        return false;
    }
    conn_send(conn, reply_message(conn, parameters, true), NULL, 0);
    return conn->state == CONN_OPEN;
}

void call_fail(struct call *call, enum wire_error error, cJSON *parameters)
{
    struct conn *conn = call->conn;
    assert(conn->in_call);
    if (call->oneway)
        cJSON_Delete(parameters);
    else
        conn_send(conn, error_message(error, parameters), NULL, 0);
    call_end(call);
}

void call_fail_parameter(struct call *call, const char *parameter)
{
    cJSON *parameters = cJSON_CreateObject();
    cJSON_AddStringToObject(parameters, "parameter", parameter);
    call_fail(call, WIRE_InvalidParameter, parameters);
}

static void deadline_passed(uv_timer_t *timer)
{
    struct conn *conn = timer->data;
    if (!conn->in_call)
        return;
    if (conn->call.abandoned)
        conn->call.abandoned(&conn->call);
    call_fail(&conn->call, WIRE_DeadlineExceeded, NULL);
}

void call_set_deadline(struct call *call, double seconds)
{
    if (seconds <= 0)
        return;
    double milliseconds = seconds * 1e3;
    /* A century is as good as for ever, and fits. */
    uint64_t timeout = milliseconds < 3e12 ? (uint64_t)milliseconds + 1 : 3000000000000u;
    uv_update_time(call->conn->conns->loop);
    uv_timer_start(&call->conn->deadline, deadline_passed, timeout, 0);
}

int call_take_fd(struct call *call, int64_t index)
{
    return frame_message_take_fd(&call->conn->frame, index);
}

bool call_take_fds(struct call *call, const cJSON *indexes, int *fds, size_t *ret_n)
{
    size_t n = 0;
    const cJSON *index;
    cJSON_ArrayForEach (index, indexes) {
        int fd = n < FRAME_FDS_MAX ? call_take_fd(call, (int64_t)index->valuedouble) : -EBADF;
        if (fd < 0) {
            while (n > 0)
                close(fds[--n]);
            call_fail_parameter(call, "fds");
            return false;
        }
        fds[n++] = fd;
    }
    *ret_n = n;
    if (n == 0)
        call_fail_parameter(call, "fds");
    return n > 0;
}

/* Makes a call of a message. Returns false, with the reason, if it is none. */
static bool conn_begin_call(struct conn *conn, const char **ret_reason)
{
    size_t offset;
    if (json_check(conn->frame.text, conn->frame.size, ret_reason, &offset) < 0)
        return false;
    conn->message = cJSON_ParseWithLength(conn->frame.text, conn->frame.size);
    if (!conn->message) {
        *ret_reason = "out of memory, or not JSON";
        return false;
    }
    const cJSON *method = NULL, *parameters = NULL, *more = NULL, *oneway = NULL, *upgrade = NULL, *field;
    cJSON_ArrayForEach (field, conn->message) {
        if (strcmp(field->string, "method") == 0)
            method = field;
        else if (strcmp(field->string, "parameters") == 0)
            parameters = field;
        else if (strcmp(field->string, "more") == 0)
            more = field;
        else if (strcmp(field->string, "oneway") == 0)
            oneway = field;
        else if (strcmp(field->string, "upgrade") == 0)
            upgrade = field;
    }
    if (!cJSON_IsString(method)) {
        *ret_reason = "no method";
        return false;
    }
    if (parameters && cJSON_IsNull(parameters))
        parameters = NULL;
    if ((parameters && !cJSON_IsObject(parameters)) || (more && !cJSON_IsBool(more)) ||
        (oneway && !cJSON_IsBool(oneway)) || (upgrade && !cJSON_IsFalse(upgrade))) {
        *ret_reason = "a field of the call has the wrong type";
        return false;
    }
    conn->call = (struct call){
        .conn = conn,
        .method = method->valuestring,
        .parameters = parameters ? parameters : conn->no_parameters,
        .more = cJSON_IsTrue(more),
        .oneway = cJSON_IsTrue(oneway),
    };
    if (conn->call.more && conn->call.oneway) {
        *ret_reason = "a call cannot be both more and oneway";
        return false;
    }
    conn->in_call = true;
    return true;
}

/* Calls what has been received, one after the other, as long as calls are answered at once. */
static void conn_process(struct conn *conn)
{
    conn->in_dispatch = true;
    uint64_t began = uv_hrtime();
    int calls = 0;
    while (conn->state == CONN_OPEN && !conn->in_call && frame_writer_pending(conn->writer) <= CONN_QUEUE_HIGH) {
        if (calls++ == CONN_TURN_CALLS || uv_hrtime() - began > CONN_TURN_NS) {
            conn->again = true;
            break;
        }
        int r = frame_reader_next(conn->reader, &conn->frame);
        if (r == 0)
            break;
        const char *reason = "the message is too long";
        if (r < 0 || !conn_begin_call(conn, &reason)) {
            conn_end(conn, reason);
            break;
        }
        conn->conns->dispatch(&conn->call, conn->conns->context);
    }
    conn->in_dispatch = false;
    if (conn->state == CONN_OPEN && conn->peer_done && !conn->again) {
        /* It gets what it asked for before it left off, if that was at hand. */
        conn->state = CONN_ENDING;
        if (conn->in_call || frame_writer_pending(conn->writer) == 0)
            conn_break(conn);
    }
    conn_poll(conn);
}

static void conn_ready(uv_poll_t *poll, int status, int events)
{
    struct conn *conn = poll->data;
    if (status < 0 || conn->state == CONN_BROKEN) {
        conn_close(conn);
        return;
    }
    if (events & UV_WRITABLE) {
        conn->again = false;
        conn_flush(conn);
        if (conn->state == CONN_OPEN && !conn->in_call)
            conn_process(conn); /* requests that waited for the queue to empty */
    }
    if (events & (UV_READABLE | UV_DISCONNECT)) {
        if (conn->state != CONN_OPEN) {
            if (events & UV_DISCONNECT)
                conn_break(conn);
            return;
        }
        int r = frame_reader_fill(conn->reader, conn->socket);
        if (r == 0)
            conn->peer_done = true;
        else if (r == -EMSGSIZE) {
            conn_end(conn, "the message is too long");
            return;
        } else if (r == -EMFILE) {
            conn_end(conn, "too many descriptors");
            return;
        } else if (r == -ENOBUFS && (events & UV_DISCONNECT) && conn->in_call) {
            conn_close(conn); /* it left, with more requests in the buffer than we will ever answer */
            return;
        } else if (r == -ENOBUFS && (events & UV_DISCONNECT)) {
            conn->hung_up = true;
        } else if (r < 0 && r != -EAGAIN && r != -EINTR && r != -ENOBUFS) {
            conn_close(conn);
            return;
        }
        conn_process(conn);
    }
}

/* Waits for what matters now. */
static void conn_poll(struct conn *conn)
{
    if (conn->state == CONN_CLOSED)
        return;
    int events = UV_DISCONNECT;
    if (conn->state == CONN_BROKEN)
        events |= UV_READABLE;
    /* Descriptors that wait behind a call are as many as one message brings. */
    bool full = !frame_reader_has_room(conn->reader) || (conn->in_call && frame_reader_fds(conn->reader) > 0);
    if (conn->state == CONN_OPEN && !conn->peer_done && !full)
        events |= UV_READABLE;
    if (conn->state != CONN_BROKEN && (conn->again || frame_writer_pending(conn->writer) > 0))
        events |= UV_WRITABLE;
    if (conn->state != CONN_BROKEN && (conn->peer_done || conn->hung_up))
        events &= ~UV_DISCONNECT; /* it would be said again and again */
    int r = uv_poll_start(&conn->poll, events, conn_ready);
    if (r < 0) {
        log_error("conn=%" PRIu64 " cannot be polled: %s", conn->id, uv_strerror(r));
        conn_close(conn);
    }
}

/* Tells a user who has too many connections, as well as that goes. */
static int refuse_user(int socket, uint64_t limit)
{
    char text[160];
    int n = snprintf(text, sizeof(text),
                     "{\"error\":\"io.rocmforge.LimitExceeded\","
                     "\"parameters\":{\"limit\":\"user-connections\",\"value\":%" PRIu64 "}}",
                     limit);
    (void)!send(socket, text, (size_t)n + 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    return -EDQUOT;
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
    LIST_INIT(&conn->leases);

    struct ucred peer;
    socklen_t size = sizeof(peer);
    int r = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ? -errno : 0;
    uint64_t limit;
    if (r == 0 && !conns->admit(conns->context, peer.uid, &limit))
        r = refuse_user(socket, limit);
    if (r == 0)
        r = frame_reader_new(CONN_REQUEST_MAX, &conn->reader);
    if (r == 0)
        r = frame_writer_new(CONN_QUEUE_MAX, &conn->writer);
    if (r == 0 && !(conn->no_parameters = cJSON_CreateObject()))
        r = -ENOMEM;
    if (r == 0)
        r = uv_poll_init(conns->loop, &conn->poll, socket);
    if (r < 0) {
        conn_free(conn);
        return r;
    }
    uv_timer_init(conns->loop, &conn->deadline);
    conn->poll.data = conn->deadline.data = conn;
    conn->id = conns->next_id++;
    conn->pid = peer.pid;
    conn->uid = peer.uid;
    LIST_INSERT_HEAD(&conns->list, conn, link);
    conns->count++;
    log_debug("conn=%" PRIu64 " pid=%d uid=%u opened", conn->id, (int)conn->pid, (unsigned)conn->uid);
    conn_poll(conn);
    return 0;
}

pid_t conn_pid(const struct conn *conn)
{
    return conn->pid;
}

uid_t conn_uid(const struct conn *conn)
{
    return conn->uid;
}

uint64_t conn_id(const struct conn *conn)
{
    return conn->id;
}

struct lease_list *conn_leases(struct conn *conn)
{
    return &conn->leases;
}
