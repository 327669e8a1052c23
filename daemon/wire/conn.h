/* One client's connection: reads messages, calls their methods one at a time and in order, and sends the replies.
 *
 * Bounded both ways: a message has a greatest size, input stops while a call is being answered and the buffer is full,
 * and replies wait in a bounded queue. A connection that breaks a rule is told so, if it can be, and closed.
 *
 *     OPEN ──▶ ENDING ──▶ BROKEN ──▶ CLOSED     ENDING: the last replies are being sent; nothing is read any more
 *       ├──────────┼────────▲          ▲          BROKEN: given up; closed as soon as the loop comes round
 *       └──────────┴───────────────────┘          CLOSED: it holds nothing; freed when the loop has let go of it
 *
 * What a call is, and how it is answered: daemon/call.h.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/wire/call.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

/* The longest request. */
#define CONN_REQUEST_MAX (256u << 10)

/* Bytes of replies that wait for a client, the next one included: it gets LimitExceeded in place of one that is more.
 */
#define CONN_QUEUE_MAX (32u << 20)

/* No further request is begun, and no progress sent, while this much waits. */
#define CONN_QUEUE_HIGH (64u << 10)

/* Calls that are answered, and nanoseconds that this takes, before the others get their turn. */
#define CONN_TURN_CALLS 16
#define CONN_TURN_NS    5000000u

/* What waits for a client that watches, at most. */
#define CONN_WATCH_MAX (1u << 20)

struct conn;

/* All connections of a daemon. */
struct conns;

/* What the owner of the connections does for them; `context` is the owner's. Only `dispatch` is required. */
struct conn_hooks {
    /* Answers a call, now or later. */
    call_fn *dispatch;

    /* A connection is there: may set its data with conn_set_data(). A negative errno refuses it. */
    int (*opened)(struct conn *conn, void *context);

    /* It is gone, its call was abandoned: its data can be freed. Called once if `opened` succeeded. */
    void (*closed)(struct conn *conn, void *context);

    /* A reply is about to be queued, to whose parameters fields may be added; and then: whether it was queued. */
    void (*replying)(struct conn *conn, cJSON *parameters);
    void (*replied)(struct conn *conn, bool queued);
};

/* `hooks`, `context` and `quota`, which each connection and what it has queued are charged to, outlive the connections.
 * -ENOMEM. */
int conns_new(uv_loop_t *loop, const struct conn_hooks *hooks, void *context, struct quota *quota, struct conns **ret);

/* Closes every connection; calls that wait are answered with ShuttingDown. `closed` is called once all are gone and
 * conns is freed. */
void conns_close(struct conns *conns, void (*closed)(void *context), void *context);

size_t conns_count(const struct conns *conns);

/* Takes over a connected socket, also when it fails. -EDQUOT: its user has too many already, and was told. */
int conn_open(struct conns *conns, int socket);

/* Tells the client at the other end of a socket that it cannot be served, as well as that goes. The socket stays the
 * caller's. `parameters` are those of LimitExceeded, and consumed. */
void conn_refuse(int socket, cJSON *parameters);

/* Who is at the other end, as the kernel says. */
pid_t conn_pid(const struct conn *conn);
uid_t conn_uid(const struct conn *conn);

/* Never used twice. For logs. */
uint64_t conn_id(const struct conn *conn);

/* What the owner keeps for this connection; NULL until it was set. */
void conn_set_data(struct conn *conn, void *data);
void *conn_data(const struct conn *conn);
