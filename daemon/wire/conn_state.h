/* The state of a connection, and the functions that its three files have for each other. Nothing else includes this.
 *
 *   conns.c  opens and closes connections, and what concerns them all
 *   conn.c   the connection on the wire: the state machine, which messages are taken and when, the queue
 *   call.c   the call that is being answered: from the message to the last reply
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/state.h"
#include "daemon/wire/call.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/turns.h"
#include "proto/frame.h"

#include <sys/queue.h>

enum conn_state {
    CONN_OPEN,
    CONN_ENDING,
    CONN_BROKEN,
    CONN_CLOSED,
};

/* Their names, and which may follow which. */
extern const struct state_machine conn_states;

struct conns {
    LIST_HEAD(, conn) list;
    size_t count;
    uint64_t next_id;
    uv_loop_t *loop;
    const struct conn_hooks *hooks;
    void *context;
    struct quota *quota;
    struct counters *counters;
    struct closer *closer; /* NULL: descriptors are closed at once */
    struct turns *turns;
    uint64_t freed; /* bytes of memory that connections had, and that the C library may still keep */
    void (*closed)(void *context);
    void *closed_context;
    bool closing;
    bool some_wait; /* a connection is not read from because of closer_is_busy() */
};

struct conn {
    LIST_ENTRY(conn) link;
    struct conns *conns;
    uv_poll_t poll;
    int events;       /* what `poll` waits for now */
    int ready;        /* what `poll` has reported since the last turn */
    struct turn turn; /* waits when the client has something to be done */
    unsigned handles; /* libuv handles (poll, deadline) that are not closed yet */
    int socket;
    uint64_t id;
    struct peer *peer; /* NULL until it was read */
    enum conn_state state;
    bool peer_done;   /* the client has closed its sending side, and all that it sent was read */
    bool hung_up;     /* the client has closed its sending side, but the buffer is full of unread requests */
    bool in_dispatch; /* messages are being taken from the buffer */
    bool held;        /* the call was not dispatched yet, and `frame` has its descriptors; see struct conn_hooks */
    struct frame_reader *reader;
    struct frame_writer *writer;
    struct frame_message frame;      /* the message of the call */
    bool opened;                     /* the owner's hook `opened` succeeded */
    void *data;                      /* the owner's */
    struct quota_charge connection;  /* counts this connection */
    struct quota_charge memory;      /* bytes of requests, of the call, and of replies that wait */
    struct quota_charge descriptors; /* received, of messages that were not taken yet */

    /* Written by call.c, made and freed with the rest. */
    bool in_call;
    struct call call;
    cJSON *message;       /* what the call's strings and parameters are part of */
    size_t message_bytes; /* of memory that it takes; 0: little */
    cJSON *no_parameters; /* an empty object, for calls without */
    uv_timer_t deadline;  /* of the call */
};

/* conns.c: ends what the connection waits for and gives back what it holds. Its memory is freed when libuv has closed
 * the handles. */
void conn_close(struct conn *conn);

/* It is closed: gives back what it has, in several turns if that is much, and then has libuv close the handles. */
void conn_let_go(struct conn *conn);

/* What a storm of clients took goes back to the system: the C library would keep it. */
void conns_give_back(struct conns *conns);

/* conn.c: moves the connection to a state that may follow its state now. */
void conn_move(struct conn *conn, enum conn_state state);

/* Polls the socket for the events that the state asks for. */
void conn_poll(struct conn *conn);

/* All that is done for a client when its socket is ready, or a call is over. */
void conn_run(struct turn *turn);

/* Queues a message, which is consumed, and sends what can be sent now. Returns false if the message was not
 * queued: the connection is ending, or an error was queued in its place because the queue, or the count of descriptors
 * in it, is full, or there is no memory for it. Descriptors stay the caller's. */
bool conn_send(struct conn *conn, cJSON *message, const int *fds, size_t n_fds);

/* The text of a message, which is consumed; for cJSON_free(). NULL: no memory. */
char *conn_text(cJSON *message);

/* Queues a message, without descriptors, and sends it in the connection's next turn; at once if more than about
 * CONN_LATER_MAX waits. */
void conn_send_later(struct conn *conn, const char *text);

/* Gives the connection up, but does not close it at once: closing ends leases and calls, which the caller may be
 * working on. The loop closes it when it sees the end of the socket. */
void conn_break(struct conn *conn);

/* Charges the user with the memory that the connection has now. */
void conn_charge_memory(struct conn *conn);

/* The connection has so much memory that its user's limit matters, and the user is beyond it. */
bool conn_has_too_much(struct conn *conn, uint64_t *ret_limit);

/* The call is over: the next message may be taken. */
void conn_next(struct conn *conn);

/* call.c: parses the message in conn->frame as a call, for the caller to dispatch. Returns false and a static reason if
 * it is not a call; the connection has to end then. */
bool call_begin(struct conn *conn, const char **ret_reason);

/* Has the call under way answered, if it waited for this turn: see call_later(). */
void call_run_later(struct conn *conn);

/* The connection closes: the call under way, if there is one, ends without an answer, and its handler is told. */
void call_abandon(struct conn *conn);

/* Ends the call under way, if there is one, with an error: tells its handler, and answers the client. */
void call_cut(struct conn *conn, enum wire_error error);

/* {"error": ..., "parameters": {...}}, which the caller deletes. The error is counted. `parameters` is consumed; NULL
 * stands for an empty object. */
cJSON *call_error_message(struct conns *conns, enum wire_error error, cJSON *parameters);

/* The same as text, for cJSON_free(). NULL: no memory. */
char *call_error_text(struct conns *conns, enum wire_error error, cJSON *parameters);
