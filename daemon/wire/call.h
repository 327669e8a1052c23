/* A method call: what a client asks for, and how it is answered.
 *
 * The functions that answer a call never close its connection at once. The loop closes it later, so that leases and
 * calls do not disappear from a list while a caller walks over that list.
 *
 * Loop thread only. */
#pragma once

#include "proto/errors.h"
#include "proto/frame.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct conn;

/* A method call that is being answered. It ends with exactly one of call_reply() and call_fail(), or when its
 * connection closes; after that it must not be touched. */
struct call {
    struct conn *conn;
    const char *method;      /* full name; borrowed from the message */
    const cJSON *parameters; /* an object, perhaps empty; borrowed until the call ends */
    bool more;               /* the client takes several replies */
    bool oneway;             /* the client takes none */

    /* For calls that are answered later. The handler sets it. Called once, if the connection closes or the deadline
     * passes before the answer: the handler must not touch the call any more. */
    void (*abandoned)(struct call *call);
    void *context; /* the handler's */

    void (*later)(struct call *call); /* see call_later() */
};

/* What a connection does with a call: methods_dispatch(). */
typedef void call_fn(struct call *call, void *context);

/* Sends the last, or only, reply. `parameters` is consumed; NULL stands for an empty object. Descriptors stay the
 * caller's. Returns false if the reply was not queued (the client gets an error or nothing): then the caller has to
 * undo what the reply grants. */
bool call_reply(struct call *call, cJSON *parameters, const int *fds, size_t n_fds);

/* Calls run(call) in the next turn of the client's user: for a call that is one of many which may be answered now.
 * Until then `abandoned` may be called, as always. */
void call_later(struct call *call, void (*run)(struct call *call));

/* Sends a reply that is not the last one; the call needs `more`. `parameters` is consumed. Returns false if the reply
 * was left out because the client has not read the earlier ones. */
bool call_continue(struct call *call, cJSON *parameters);

/* As call_continue(), for replies that must not be left out. Returns false if too much waits for the client: its
 * connection is given up then, and the call will be abandoned. */
bool call_continue_all(struct call *call, cJSON *parameters);

/* Whether the client has read so much of the earlier replies that call_continue() would not leave one out. */
bool call_keeps_up(const struct call *call);

/* The message of such a reply, for call_continue_text() of several calls, and for cJSON_free(). `parameters` is
 * consumed. NULL: no memory. */
char *call_text(cJSON *parameters);

/* As call_continue_all(), for the message that call_text() made, and which stays the caller's. The hooks `replying` and
 * `replied` are not called. The message is sent in a turn of the client's user. */
bool call_continue_text(struct call *call, const char *text);

/* Whether a reply of so many bytes may be queued for the caller: asked before a long one is made. Returns false after
 * the call was failed with LimitExceeded. */
bool call_may_queue(struct call *call, uint64_t bytes);

/* Ends the call with an error. `parameters` is consumed; NULL stands for an empty object. */
void call_fail(struct call *call, enum wire_error error, cJSON *parameters);

/* Ends the call with org.varlink.service.InvalidParameter. */
void call_fail_parameter(struct call *call, const char *parameter);

/* Ends the call with DeadlineExceeded if it is not answered within `seconds` from now; 0 or less: no deadline. */
void call_set_deadline(struct call *call, double seconds);

/* Gives the descriptors at the indexes in `indexes`, an array of integers, to the caller, who closes them; `fds` has
 * room for FRAME_FDS_MAX. Returns true; or false after the call was failed, and then takes no descriptor. */
bool call_take_fds(struct call *call, const cJSON *indexes, int *fds, size_t *ret_n);
