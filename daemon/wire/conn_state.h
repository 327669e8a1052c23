/* What the two files of a connection share: its state, and what each does for the other. Nothing else includes this.
 *
 *   conn.c  the connection on the wire: the socket, the state machine, which messages are taken and when, the queue
 *   call.c  the call that is being answered: from the message to the last reply
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/call.h"
#include "daemon/wire/conn.h"
#include "proto/frame.h"

#include <sys/queue.h>

enum conn_state {
    CONN_OPEN,
    CONN_ENDING,
    CONN_BROKEN,
    CONN_CLOSED,
};

struct conns {
    LIST_HEAD(, conn) list;
    size_t count;
    uint64_t next_id;
    uv_loop_t *loop;
    const struct conn_hooks *hooks;
    void *context;
    struct quota *quota;
    void (*closed)(void *context);
    void *closed_context;
    bool closing;
};

struct conn {
    LIST_ENTRY(conn) link;
    struct conns *conns;
    uv_poll_t poll;
    unsigned handles; /* of poll and deadline, that the loop has not let go of */
    int socket;
    uint64_t id;
    pid_t pid;
    uid_t uid;
    enum conn_state state;
    bool peer_done;   /* the other side sends no more, and all that it sent was read */
    bool hung_up;     /* it sends no more, but the buffer is full of what it sent */
    bool in_dispatch; /* messages are being taken from the buffer */
    bool again;       /* a call ended later; look at the buffer when the loop comes round */
    struct frame_reader *reader;
    struct frame_writer *writer;
    struct frame_message frame;     /* the last that was taken: the call's */
    bool opened;                    /* the owner knows of it */
    void *data;                     /* the owner's */
    struct quota_charge connection; /* 1 */
    struct quota_charge replies;    /* bytes that wait in the writer */

    /* Written by call.c, made and freed with the rest. */
    bool in_call;
    struct call call;
    cJSON *message;       /* what the call's strings and parameters are part of */
    cJSON *no_parameters; /* an empty object, for calls without */
    uv_timer_t deadline;  /* of the call */
};

/* conn.c: queues a message, which is consumed, and sends what can be sent now. A connection that takes none any more
 * drops it; one whose queue has no room for it, or for whose descriptors there is none, gets an error in its stead.
 * Returns false then. Descriptors stay the caller's. */
bool conn_send(struct conn *conn, cJSON *message, const int *fds, size_t n_fds);

/* Gives the connection up without closing it now: whoever sends a reply is in the middle of something, and closing ends
 * leases and calls. The loop sees the socket's end, and closes. */
void conn_break(struct conn *conn);

/* The call is over: the next message gets its turn. */
void conn_next(struct conn *conn);

/* call.c: makes a call of the message in conn->frame, for the caller to dispatch. Returns false, with the reason, if it
 * is none; the stream cannot go on then. The reason is static. */
bool call_begin(struct conn *conn, const char **ret_reason);

/* The connection closes: its call, if it is in one, ends without an answer, and its handler is told. */
void call_abandon(struct conn *conn);

/* The call under way, if there is one, ends with an error, whatever it waits for: its handler is told, and its client.
 */
void call_cut(struct conn *conn, enum wire_error error);

/* {"error": ..., "parameters": {...}}, which the caller deletes. `parameters` is consumed; NULL stands for an empty
 * object. */
cJSON *call_error_message(enum wire_error error, cJSON *parameters);

/* The same as text, for cJSON_free(). NULL: no memory. */
char *call_error_text(enum wire_error error, cJSON *parameters);
