#include "daemon/wire/conn.h"

#include "daemon/base/json_memory.h"
#include "daemon/base/log.h"
#include "daemon/wire/conn_state.h"
#include "daemon/wire/errors.h"
#include "proto/frame.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const struct state states[] = {
    [CONN_OPEN] = {"open", STATE(CONN_ENDING) | STATE(CONN_BROKEN) | STATE(CONN_CLOSED)},
    [CONN_ENDING] = {"ending", STATE(CONN_BROKEN) | STATE(CONN_CLOSED)},
    [CONN_BROKEN] = {"broken", STATE(CONN_CLOSED)},
    [CONN_CLOSED] = {"closed", 0},
};

const struct state_machine conn_states = STATE_MACHINE(states);

/* Bytes that the text of a message has room for at first. */
#define CONN_TEXT_FIRST 1024

void conn_move(struct conn *conn, enum conn_state state)
{
    state_move(&conn_states, &conn->state, state);
}

void conn_break(struct conn *conn)
{
    if (conn->state != CONN_OPEN && conn->state != CONN_ENDING)
        return;
    conn_move(conn, CONN_BROKEN);
    shutdown(conn->socket, SHUT_RDWR);
    conn_poll(conn);
}

void conn_charge_memory(struct conn *conn)
{
    if (conn->state == CONN_CLOSED)
        return;
    const uint64_t before = conn->memory.amount;
    quota_set(&conn->memory,
              frame_reader_memory(conn->reader) + conn->message_bytes + frame_writer_pending(conn->writer));
    if (conn->memory.amount < before)
        conn->conns->freed += before - conn->memory.amount;
    quota_set(&conn->descriptors, frame_reader_fds(conn->reader) + (conn->held ? conn->frame.n_fds : 0));
}

bool conn_has_too_much(struct conn *conn, uint64_t *ret_limit)
{
    return conn->memory.amount > CONN_MEMORY_FREE && !quota_within(&conn->memory, ret_limit);
}

/* Sends what can be sent now. */
static void conn_flush(struct conn *conn)
{
    if (conn->state != CONN_OPEN && conn->state != CONN_ENDING)
        return;
    int r = frame_writer_flush(conn->writer, conn->socket);
    conn_charge_memory(conn);
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

/* Queues an error: a message without descriptors, which needs little room. */
static int conn_put_error(struct conn *conn, enum wire_error error, cJSON *parameters)
{
    char *text = call_error_text(conn->conns, error, parameters);
    int r = text ? frame_writer_put(conn->writer, text, strlen(text), NULL, 0) : -ENOMEM;
    cJSON_free(text);
    conn_charge_memory(conn);
    return r;
}

char *conn_text(cJSON *message)
{
    char *text = message ? cJSON_PrintBuffered(message, CONN_TEXT_FIRST, false) : NULL;
    cJSON_Delete(message);
    if (!json_memory_failed())
        return text;
    cJSON_free(text);
    return NULL;
}

/* Without a reply the client would wait for ever. The end of the connection tells it. */
static void conn_give_up(struct conn *conn, int status)
{
    log_client(LOG_LEVEL_WARNING, "conn=%" PRIu64 " pid=%d a reply cannot be queued: %s; closing", conn->id,
               (int)conn->peer->pid, strerror(-status));
    conn_break(conn);
}

bool conn_send(struct conn *conn, cJSON *message, const int *fds, size_t n_fds)
{
    if (conn->state != CONN_OPEN) {
        cJSON_Delete(message);
        return false;
    }
    char *text = conn_text(message);
    const bool whole = text;
    int r = whole ? frame_writer_send(conn->writer, conn->socket, text, fds, n_fds) : 0;
    cJSON_free(text);
    bool queued = whole && r == 0;
    if (!whole)
        r = conn_put_error(conn, WIRE_LimitExceeded, error_no_memory());
    else if (r == -ENOBUFS)
        r = conn_put_error(conn, WIRE_LimitExceeded, error_limit("reply", CONN_QUEUE_MAX));
    else if (r == -EMFILE)
        r = conn_put_error(conn, WIRE_LimitExceeded, error_no_descriptors());
    if (r < 0) {
        conn_give_up(conn, r);
        return false;
    }
    conn_flush(conn);
    return queued;
}

/* All who watch are told the same. If they reached the limit at the same event, the loop would send to all of them at
 * once: so each has a limit of its own. */
static size_t later_max(const struct conn *conn)
{
    return CONN_LATER_MAX / 2 + conn->id % 64 * (CONN_LATER_MAX / 64);
}

void conn_send_later(struct conn *conn, const char *text)
{
    if (conn->state != CONN_OPEN)
        return;
    int r = frame_writer_put(conn->writer, text, strlen(text), NULL, 0);
    conn_charge_memory(conn);
    if (r < 0) {
        conn_give_up(conn, r);
        return;
    }
    if (conn->events & UV_WRITABLE) /* the socket is full: the loop tells when it is not */
        return;
    if (frame_writer_pending(conn->writer) > later_max(conn)) {
        conn_flush(conn);
        return;
    }
    conn->ready |= UV_WRITABLE;
    turn_wait(&conn->turn);
}

/* Says what is wrong, and ends the connection. `parameters` is consumed. */
static void conn_end_with(struct conn *conn, enum wire_error error, cJSON *parameters, const char *reason)
{
    if (conn->state != CONN_OPEN) {
        cJSON_Delete(parameters);
        return;
    }
    log_client_fields(LOG_LEVEL_INFO,
                      (&(const struct log_fields){
                          .id = MESSAGE_CLIENT_ENDED, .has_uid = true, .uid = conn->peer->uid, .pid = conn->peer->pid}),
                      "conn=%" PRIu64 " pid=%d uid=%u ends: %s", conn->id, (int)conn->peer->pid,
                      (unsigned)conn->peer->uid, reason);
    int r = conn_put_error(conn, error, parameters);
    conn_move(conn, CONN_ENDING);
    if (r < 0)
        conn_break(conn);
    else
        conn_flush(conn);
}

/* The same where something is wrong with the stream. */
static void conn_end(struct conn *conn, const char *reason)
{
    conn_end_with(conn, WIRE_InvalidMessage, error_reason(reason), reason);
}

void conn_next(struct conn *conn)
{
    if (conn->state == CONN_OPEN && !conn->in_dispatch) {
        /* Later: the function that answered is still at work, and must not find the state changed by another request.
         */
        turn_wait(&conn->turn);
        conn_poll(conn);
    }
}

/* Dispatches the call, or holds it. */
static void conn_dispatch(struct conn *conn)
{
    const struct conn_hooks *hooks = conn->conns->hooks;
    uint64_t limit;
    conn->held = hooks->holds && hooks->holds(&conn->call, conn->conns->context);
    if (conn->held) {
        conn_charge_memory(conn);
        return;
    }
    (void)json_memory_failed(); /* what a reply before this one had no memory for is told already */
    hooks->dispatch(&conn->call, conn->conns->context);
    if (conn->in_call && conn_has_too_much(conn, &limit))
        conn_end_with(conn, WIRE_LimitExceeded, error_limit(quota_name(QUOTA_MEMORY), limit),
                      "its user has too much memory");
    frame_message_close_fds(&conn->frame); /* a call takes the descriptors that it wants before dispatch() returns, but
                                              may last longer */
}

/* Dispatches the calls that were received, one after the other, until one is not answered at once. */
static void conn_process(struct conn *conn)
{
    conn->in_dispatch = true;
    uint64_t began = uv_hrtime();
    int calls = 0;
    if (conn->held && conn->state == CONN_OPEN)
        conn_dispatch(conn);
    while (conn->state == CONN_OPEN && !conn->in_call && frame_writer_pending(conn->writer) <= CONN_QUEUE_HIGH) {
        if (calls++ == CONN_TURN_CALLS || uv_hrtime() - began > CONN_TURN_NS) {
            turn_wait(&conn->turn);
            break;
        }
        int r = frame_reader_next(conn->reader, &conn->frame);
        if (r == 0)
            break;
        const char *reason = "the message is too long";
        if (r == -ENOMEM)
            reason = "out of memory";
        if (r < 0 || !call_begin(conn, &reason)) {
            conn_end(conn, reason);
            break;
        }
        conn_dispatch(conn);
    }
    conn->in_dispatch = false;
    if (conn->state == CONN_OPEN && conn->peer_done && !conn->turn.waiting && !conn->held) {
        /* The client closed its sending side: it still gets the answers that are ready. */
        conn_move(conn, CONN_ENDING);
        if (conn->in_call || frame_writer_pending(conn->writer) == 0)
            conn_break(conn);
    }
    conn_poll(conn);
}

/* The socket may be read, or is at its end. */
static void conn_receive(struct conn *conn, int events)
{
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
    } else if (r == -E2BIG) {
        conn_end(conn, "too many descriptors");
        return;
    } else if (r == -EMFILE) {
        conn_end_with(conn, WIRE_LimitExceeded, error_no_descriptors(), "no descriptor is left for its own");
        return;
    } else if (r == -ENOBUFS && (events & UV_DISCONNECT) && conn->in_call) {
        conn_close(conn); /* the client has gone, and the buffer is full of requests that nobody waits for */
        return;
    } else if (r == -ENOBUFS && (events & UV_DISCONNECT)) {
        conn->hung_up = true;
    } else if (r < 0 && r != -EAGAIN && r != -EINTR && r != -ENOBUFS) {
        conn_close(conn);
        return;
    }
    uint64_t limit;
    conn_charge_memory(conn);
    if (conn_has_too_much(conn, &limit))
        conn_end_with(conn, WIRE_LimitExceeded, error_limit(quota_name(QUOTA_MEMORY), limit),
                      "its user has too much memory");
    else if (conn->descriptors.amount > 0 && !quota_within(&conn->descriptors, &limit))
        conn_end_with(conn, WIRE_LimitExceeded, error_limit(quota_name(QUOTA_DESCRIPTORS), limit),
                      "its user has too many descriptors");
    conn_process(conn);
}

static bool conn_must_wait(const struct conn *conn)
{
    const bool waits = closer_is_busy(conn->conns->closer, conn->peer->uid);
    conn->conns->some_wait |= waits;
    return waits;
}

void conn_run(struct turn *turn)
{
    struct conn *conn = (struct conn *)((char *)turn - offsetof(struct conn, turn));
    const int events = conn->ready;
    conn->ready = 0;
    if (conn->state == CONN_CLOSED) {
        conn_let_go(conn);
        return;
    }
    if (conn->state == CONN_BROKEN) {
        if (events)
            conn_close(conn);
        return;
    }
    if (events & UV_WRITABLE)
        conn_flush(conn);
    call_run_later(conn);
    if ((events & UV_READABLE) && !(events & UV_DISCONNECT) && conn_must_wait(conn))
        conn_poll(conn);
    else if (events & (UV_READABLE | UV_DISCONNECT))
        conn_receive(conn, events);
    else if (conn->state == CONN_OPEN && (!conn->in_call || conn->held))
        conn_process(conn);
    conns_give_back(conn->conns);
}

static void conn_ready(uv_poll_t *poll, int status, int events)
{
    struct conn *conn = poll->data;
    if (status < 0) {
        conn_close(conn);
        return;
    }
    conn->ready |= events;
    turn_wait(&conn->turn);
}

void conn_poll(struct conn *conn)
{
    if (conn->state == CONN_CLOSED)
        return;
    int events = UV_DISCONNECT;
    if (conn->state == CONN_BROKEN)
        events |= UV_READABLE;
    /* While a call is under way, the descriptors of at most one more message are received. */
    const bool waits = conn_must_wait(conn);
    bool full = waits || !frame_reader_has_room(conn->reader) || (conn->in_call && frame_reader_fds(conn->reader) > 0);
    if (conn->state == CONN_OPEN && !conn->peer_done && !full)
        events |= UV_READABLE;
    if (conn->state != CONN_BROKEN && frame_writer_pending(conn->writer) > 0)
        events |= UV_WRITABLE;
    if (conn->state != CONN_BROKEN && (conn->peer_done || conn->hung_up))
        events &= ~UV_DISCONNECT; /* it stays true, and would be reported without end */
    if (events == conn->events)   /* each start costs system calls */
        return;
    conn->events = events;
    int r = uv_poll_start(&conn->poll, events, conn_ready);
    if (r < 0) {
        log_error("conn=%" PRIu64 " cannot be polled: %s", conn->id, uv_strerror(r));
        conn_close(conn);
    }
}
