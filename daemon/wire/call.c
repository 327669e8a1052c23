#include "daemon/wire/call.h"

#include "daemon/base/json_text.h"
#include "daemon/base/log.h"
#include "daemon/base/seconds.h"
#include "daemon/wire/conn_state.h"
#include "daemon/wire/errors.h"
#include "proto/frame.h"
#include "proto/json_check.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* Bytes of a message whose memory is not counted. */
#define MESSAGE_SMALL 4096

/* Bytes of memory that a value takes, with all that is in it. */
static size_t value_memory(const cJSON *value)
{
    size_t bytes = sizeof(*value) + (value->string ? strlen(value->string) : 0) +
                   (value->valuestring ? strlen(value->valuestring) : 0);
    const cJSON *element;
    cJSON_ArrayForEach (element, value)
        bytes += value_memory(element); /* at most JSON_DEPTH_MAX deep */
    return bytes;
}

/* Keeps what the call is made of, and drops what a client put beside it: the call may last long. */
static void call_keep(struct conn *conn, const cJSON *method, const cJSON *parameters)
{
    cJSON *next;
    for (cJSON *field = conn->message->child; field; field = next) {
        next = field->next;
        if (field != method && field != parameters)
            cJSON_Delete(cJSON_DetachItemViaPointer(conn->message, field));
    }
    conn->message_bytes = conn->frame.size > MESSAGE_SMALL ? value_memory(conn->message) : 0;
}

bool call_begin(struct conn *conn, const char **ret_reason)
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
    if (!method || !cJSON_IsString(method)) {
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
    call_keep(conn, method, parameters);
    frame_reader_free_text(conn->reader);
    conn->in_call = true;
    if (conn->message_bytes > 0)
        conn_charge_memory(conn);
    return true;
}

void call_abandon(struct conn *conn)
{
    if (!conn->in_call)
        return;
    conn->in_call = false;
    if (conn->call.abandoned)
        conn->call.abandoned(&conn->call);
}

static void error_count(struct conns *conns, enum wire_error error, const cJSON *parameters)
{
    const cJSON *limit = cJSON_GetObjectItemCaseSensitive(parameters, "limit");
    counters_error(conns->counters, error, error == WIRE_LimitExceeded ? cJSON_GetStringValue(limit) : NULL);
}

cJSON *call_error_message(struct conns *conns, enum wire_error error, cJSON *parameters)
{
    error_count(conns, error, parameters);
    cJSON *message = cJSON_CreateObject();
    cJSON_AddStringToObject(message, "error", wire_error_name(error));
    json_add_item(message, "parameters", parameters ? parameters : cJSON_CreateObject());
    return message;
}

char *call_error_text(struct conns *conns, enum wire_error error, cJSON *parameters)
{
    cJSON *message = call_error_message(conns, error, parameters);
    char *text = cJSON_PrintUnformatted(message);
    cJSON_Delete(message);
    return text;
}

/* Sends a reply of the call, with what the owner of the connection adds to it. */
static bool send_reply(struct conn *conn, cJSON *parameters, bool continues, const int *fds, size_t n_fds)
{
    const struct conn_hooks *hooks = conn->conns->hooks;
    cJSON *message = cJSON_CreateObject();
    if (!parameters)
        parameters = cJSON_CreateObject();
    if (hooks->replying)
        hooks->replying(conn, parameters);
    json_add_item(message, "parameters", parameters);
    if (continues)
        cJSON_AddTrueToObject(message, "continues");
    const bool queued = conn_send(conn, message, fds, n_fds);
    if (hooks->replied)
        hooks->replied(conn, queued);
    return queued;
}

/* A call is over: frees its message, and lets the next one begin. */
static void call_end(struct call *call)
{
    struct conn *conn = call->conn;
    conn->in_call = false;
    uv_timer_stop(&conn->deadline);
    cJSON_Delete(conn->message);
    conn->message = NULL;
    conn->message_bytes = 0;
    conn_charge_memory(conn);
    conn_next(conn);
}

bool call_reply(struct call *call, cJSON *parameters, const int *fds, size_t n_fds)
{
    struct conn *conn = call->conn;
    assert(conn->in_call);
    bool sent = !call->oneway;
    if (call->oneway)
        cJSON_Delete(parameters);
    else
        sent = send_reply(conn, parameters, false, fds, n_fds);
    call_end(call);
    return sent;
}

void call_later(struct call *call, void (*run)(struct call *call))
{
    assert(call->conn->in_call);
    call->later = run;
    turn_wait(&call->conn->turn);
}

void call_run_later(struct conn *conn)
{
    void (*run)(struct call *) = conn->in_call ? conn->call.later : NULL;
    conn->call.later = NULL;
    if (run)
        run(&conn->call);
}

bool call_keeps_up(const struct call *call)
{
    return frame_writer_pending(call->conn->writer) <= CONN_QUEUE_HIGH;
}

bool call_continue(struct call *call, cJSON *parameters)
{
    assert(call->conn->in_call && call->more);
    if (!call_keeps_up(call)) {
        cJSON_Delete(parameters);
        return false;
    }
    (void)send_reply(call->conn, parameters, true, NULL, 0);
    return true;
}

/* Whether so little waits for the client that more may be queued. If not, its connection is given up. */
static bool call_reads(struct call *call)
{
    struct conn *conn = call->conn;
    assert(conn->in_call && call->more);
    uint64_t limit;
    if (frame_writer_pending(conn->writer) <= CONN_WATCH_MAX && !conn_has_too_much(conn, &limit))
        return true;
    if (conn->state == CONN_OPEN)
        log_client(LOG_LEVEL_INFO, "conn=%" PRIu64 " pid=%d does not read what it watches; closing", conn->id,
                   (int)conn->peer->pid);
    conn_break(conn);
    return false;
}

bool call_continue_all(struct call *call, cJSON *parameters)
{
    if (!call_reads(call)) {
        cJSON_Delete(parameters);
        return false;
    }
    (void)send_reply(call->conn, parameters, true, NULL, 0);
    return call->conn->state == CONN_OPEN;
}

char *call_text(cJSON *parameters)
{
    cJSON *message = cJSON_CreateObject();
    json_add_item(message, "parameters", parameters);
    cJSON_AddTrueToObject(message, "continues");
    return conn_text(message);
}

bool call_continue_text(struct call *call, const char *text)
{
    if (!call_reads(call))
        return false;
    conn_send_later(call->conn, text);
    return call->conn->state == CONN_OPEN;
}

void call_fail(struct call *call, enum wire_error error, cJSON *parameters)
{
    struct conn *conn = call->conn;
    assert(conn->in_call);
    if (call->oneway) {
        error_count(conn->conns, error, parameters);
        cJSON_Delete(parameters);
    } else
        (void)conn_send(conn, call_error_message(conn->conns, error, parameters), NULL, 0);
    call_end(call);
}

void call_fail_parameter(struct call *call, const char *parameter)
{
    cJSON *parameters = cJSON_CreateObject();
    cJSON_AddStringToObject(parameters, "parameter", parameter);
    call_fail(call, WIRE_InvalidParameter, parameters);
}

bool call_may_queue(struct call *call, uint64_t bytes)
{
    uint64_t limit = CONN_QUEUE_MAX;
    if (bytes > CONN_QUEUE_MAX / 2)
        call_fail(call, WIRE_LimitExceeded, error_limit("reply", limit));
    else if (!quota_may_grow(&call->conn->memory, bytes, &limit))
        call_fail(call, WIRE_LimitExceeded, error_limit(quota_name(QUOTA_MEMORY), limit));
    else
        return true;
    return false;
}

void call_cut(struct conn *conn, enum wire_error error)
{
    if (!conn->in_call)
        return;
    if (conn->call.abandoned)
        conn->call.abandoned(&conn->call);
    call_fail(&conn->call, error, NULL);
}

static void deadline_passed(uv_timer_t *timer)
{
    call_cut(timer->data, WIRE_DeadlineExceeded);
}

void call_set_deadline(struct call *call, double seconds)
{
    if (seconds <= 0)
        return;
    const uint64_t timeout = seconds_to_ns(seconds) / 1000000 + 1; /* milliseconds */
    uv_timer_t *timer = &call->conn->deadline;
    uv_update_time(timer->loop);
    uv_timer_start(timer, deadline_passed, timeout, 0);
}

bool call_take_fds(struct call *call, const cJSON *indexes, int *fds, size_t *ret_n)
{
    size_t n = 0;
    const cJSON *index;
    cJSON_ArrayForEach (index, indexes) {
        int fd = n < FRAME_FDS_MAX ? frame_message_take_fd(&call->conn->frame, (int64_t)index->valuedouble) : -EBADF;
        if (fd < 0) {
            while (n > 0)
                conn_close_fd(call->conn, fds[--n]);
            call_fail_parameter(call, "fds");
            return false;
        }
        fds[n++] = fd;
    }
    if (n == 0) {
        call_fail_parameter(call, "fds");
        return false;
    }
    *ret_n = n;
    return true;
}
