/* One client's connection: reads messages, calls their methods one at a time and in order, and sends the replies.
 *
 * Bounded both ways: a message has a greatest size, input stops while a call is being answered and the buffer is full,
 * and replies wait in a bounded queue. A connection that breaks a rule is told so, if it can be, and closed.
 *
 *     OPEN ──▶ ENDING ──▶ BROKEN ──▶ CLOSED     ENDING: the last replies are being sent; nothing is read any more
 *       └───────────────────▲                     BROKEN: given up; closed as soon as the loop comes round
 *
 * None of the functions that answer a call closes its connection: that happens from the loop, so that nobody's leases
 * or calls end while somebody walks over them.
 *
 * Loop thread only. */
#pragma once

#include "daemon/lease.h"
#include "proto/errors.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

/* The longest request. */
#define CONN_REQUEST_MAX (256u << 10)

/* Bytes of replies that wait for a client. A client with more waiting is disconnected. */
#define CONN_QUEUE_MAX (32u << 20)

/* No further request is begun, and no progress sent, while this much waits. */
#define CONN_QUEUE_HIGH (64u << 10)

/* Calls that are answered, and nanoseconds that this takes, before the others get their turn. */
#define CONN_TURN_CALLS 16
#define CONN_TURN_NS    5000000u

/* What waits for a client that watches, at most. */
#define CONN_WATCH_MAX (1u << 20)

struct conn;

/* A method call that is being answered. It ends with exactly one of call_reply() and call_fail(), or when its
 * connection closes; after that it must not be touched. */
struct call {
    struct conn *conn;
    const char *method;      /* full name; borrowed from the message */
    const cJSON *parameters; /* an object, perhaps empty; borrowed until the call ends */
    bool more;               /* the client takes several replies */
    bool oneway;             /* the client takes none */

    /* For calls that are answered later: called once if the connection closes, or the deadline passes, first. The
     * handler sets it, and forgets the call when it is called. */
    void (*abandoned)(struct call *call);
    void *context; /* the handler's */
};

/* What a connection does with a call: methods_dispatch(). */
typedef void call_fn(struct call *call, void *context);

/* All connections of a daemon. */
struct conns;

/* Whether a user may have another connection. *ret_limit: how many. */
typedef bool conn_admit_fn(void *context, uid_t uid, uint64_t *ret_limit);

/* `context` is passed to both functions. */
int conns_new(uv_loop_t *loop, call_fn *dispatch, conn_admit_fn *admit, void *context, struct conns **ret);

/* Closes every connection. `closed` is called once all are gone and conns is freed. */
void conns_close(struct conns *conns, void (*closed)(void *context), void *context);

size_t conns_count(const struct conns *conns);

/* Those of one user. */
size_t conns_count_of(const struct conns *conns, uid_t uid);

/* Takes over a connected socket, also when it fails. -EDQUOT: its user has too many already, and was told. */
int conn_open(struct conns *conns, int socket);

/* Who is at the other end, as the kernel says. */
pid_t conn_pid(const struct conn *conn);
uid_t conn_uid(const struct conn *conn);

/* Never used twice. For logs. */
uint64_t conn_id(const struct conn *conn);

/* The leases that this connection holds. They end with it. */
struct lease_list *conn_leases(struct conn *conn);

/* Sends the last, or only, reply. `parameters` is consumed; NULL stands for an empty object. Descriptors stay the
 * caller's. */
void call_reply(struct call *call, cJSON *parameters, const int *fds, size_t n_fds);

/* Sends a reply that others will follow; the call needs `more`. `parameters` is consumed. Returns false if it was left
 * out, because the client has not read what went before. */
bool call_continue(struct call *call, cJSON *parameters);

/* As call_continue(), for replies that must not be left out: a client that is too far behind is given up, and the call
 * will be abandoned. Returns false in that case. */
bool call_continue_all(struct call *call, cJSON *parameters);

/* Ends the call with an error. `parameters` is consumed; NULL stands for an empty object. */
void call_fail(struct call *call, enum wire_error error, cJSON *parameters);

/* Ends the call with org.varlink.service.InvalidParameter. */
void call_fail_parameter(struct call *call, const char *parameter);

/* Ends the call with DeadlineExceeded if it is not answered within `seconds` from now; 0 or less: no deadline. */
void call_set_deadline(struct call *call, double seconds);

/* Gives the descriptor at `index` beside the message to the caller, who closes it; or -EBADF. */
int call_take_fd(struct call *call, int64_t index);

/* Gives the descriptors at the indexes in `indexes`, an array of integers, to the caller, who closes them; `fds` has
 * room for FRAME_FDS_MAX. Returns true, or false after the call was failed. */
bool call_take_fds(struct call *call, const cJSON *indexes, int *fds, size_t *ret_n);
