/* One client's connection: reads messages, calls their methods one at a time and in order, and sends the replies.
 *
 * Bounded both ways: a message has a greatest size, input stops while a call is being answered and the buffer is full,
 * and replies wait in a bounded queue. A connection that breaks a rule is told so, if it can be, and closed.
 *
 *     OPEN ──▶ ENDING ──▶ BROKEN ──▶ CLOSED     ENDING: the last replies are being sent; nothing is read any more
 *       ├──────────┼────────▲          ▲          BROKEN: given up; closed as soon as the loop comes round
 *       └──────────┴───────────────────┘          CLOSED: what it holds is given back, in turns; then it is freed
 *
 * What a call is, and how it is answered: call.h.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/closer.h"
#include "daemon/base/counters.h"
#include "daemon/base/peer.h"
#include "daemon/base/quota.h"
#include "daemon/wire/call.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

/* The longest request. */
#define CONN_REQUEST_MAX (256u << 10)

/* The most bytes of replies that wait for a client. A reply that would exceed it is replaced by LimitExceeded. */
#define CONN_QUEUE_MAX (32u << 20)

/* While more bytes than this wait, no further request is begun and no progress is sent. */
#define CONN_QUEUE_HIGH (64u << 10)

/* While more bytes than about this wait for a client that watches, they are sent at once, and not in its turn: so they
 * do not count against its user as long as the socket takes them. */
#define CONN_LATER_MAX (32u << 10)

/* A connection's turn (turns.h) ends after so many calls, or so many nanoseconds. */
#define CONN_TURN_CALLS 16
#define CONN_TURN_NS    500000u

/* The most bytes that wait for a client that watches. */
#define CONN_WATCH_MAX (1u << 20)

/* A connection that has less memory than this is served also when its user is beyond the limit: to detach, for
 * instance.
 */
#define CONN_MEMORY_FREE (64u << 10)

struct conn;

/* All connections of a daemon. */
struct conns;

/* What the owner of the connections does for them; `context` is the owner's. Only `dispatch` is required. */
struct conn_hooks {
    /* Answers a call, now or later. */
    call_fn *dispatch;

    /* Whether the call cannot be dispatched yet: it waits, and so do those behind it on its connection. Asked again
     * after conns_release(). NULL: none waits. */
    bool (*holds)(const struct call *call, void *context);

    /* A client has connected: may set the connection's data with conn_set_data(). A negative errno refuses the client.
     */
    int (*opened)(struct conn *conn, void *context);

    /* The connection ends, and its call was abandoned: its data can be freed. Returns false if this would take long:
     * then it is called again, when others have had their turns. Called if `opened` succeeded, until it returns true.
     */
    bool (*closed)(struct conn *conn, void *context);

    /* Called before a reply is queued, and may add fields to its parameters; then, whether the reply was queued. */
    void (*replying)(struct conn *conn, cJSON *parameters);
    void (*replied)(struct conn *conn, bool queued);
};

/* `hooks`, `context`, `quota`, which each connection and what it has queued are charged to, and `counters`, which count
 * the errors that clients get, outlive the connections. -ENOMEM. */
int conns_new(uv_loop_t *loop, const struct conn_hooks *hooks, void *context, struct quota *quota,
              struct counters *counters, struct conns **ret);

/* Closes every connection; calls that wait are answered with ShuttingDown. `closed` is called once all are gone and
 * conns is freed. */
void conns_close(struct conns *conns, void (*closed)(void *context), void *context);

/* Calls that were held may go on now. */
void conns_release(struct conns *conns);

/* Descriptors that clients have sent, and nobody takes, are given to it. It outlives the connections. */
void conns_set_closer(struct conns *conns, struct closer *closer);

/* Clients whose user has sent more descriptors than could be closed yet are read from again: see closer_is_busy(). */
void conns_go_on(struct conns *conns);

/* Closes a descriptor that this client has sent, soon: see closer.h. */
void conn_close_fd(const struct conn *conn, int fd);

size_t conns_count(const struct conns *conns);

/* Takes over a connected socket, also if this fails. -EDQUOT: the user has too many connections; the client was told.
 */
int conn_open(struct conns *conns, int socket);

/* Tries to tell the client at a socket that it cannot be served. The socket stays the caller's. `parameters` are those
 * of LimitExceeded, and consumed. */
void conn_refuse(struct conns *conns, int socket, cJSON *parameters);

/* The client's process and user when it connected, as the kernel tells; and with these its groups, which last as long
 * as the connection, or as long as somebody keeps them. */
pid_t conn_pid(const struct conn *conn);
uid_t conn_uid(const struct conn *conn);
struct peer *conn_peer(const struct conn *conn);

/* For logs. No two connections have the same. */
uint64_t conn_id(const struct conn *conn);

/* The owner's data of this connection; NULL until it was set. */
void conn_set_data(struct conn *conn, void *data);
void *conn_data(const struct conn *conn);
