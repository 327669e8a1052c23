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

#include "daemon/wire/call.h"
#include "daemon/model/lease.h"

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

/* Whether a user may have another connection. *ret_limit: how many. */
typedef bool conn_admit_fn(void *context, uid_t uid, uint64_t *ret_limit);

/* `context` is passed to both functions. -ENOMEM. */
int conns_new(uv_loop_t *loop, call_fn *dispatch, conn_admit_fn *admit, void *context, struct conns **ret);

/* Closes every connection; calls that wait are answered with ShuttingDown. `closed` is called once all are gone and
 * conns is freed. */
void conns_close(struct conns *conns, void (*closed)(void *context), void *context);

size_t conns_count(const struct conns *conns);

/* Those of one user. */
size_t conns_count_of(const struct conns *conns, uid_t uid);

/* Bytes of replies that wait for all clients of a user. */
uint64_t conns_queued_of(const struct conns *conns, uid_t uid);

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

/* The leases that this connection holds. They end with it. */
struct lease_list *conn_leases(struct conn *conn);
