/* A method call: what a client asks for, and how it is answered.
 *
 * None of the functions that answer a call closes its connection: that happens from the loop, so that nobody's leases
 * or calls end while somebody walks over them.
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

    /* For calls that are answered later: called once if the connection closes, or the deadline passes, first. The
     * handler sets it, and forgets the call when it is called. */
    void (*abandoned)(struct call *call);
    void *context; /* the handler's */
};

/* What a connection does with a call: methods_dispatch(). */
typedef void call_fn(struct call *call, void *context);

/* Sends the last, or only, reply. `parameters` is consumed; NULL stands for an empty object. Descriptors stay the
 * caller's. Returns false if the client gets an error in its stead, or nothing: what was granted with it has to be
 * taken back. */
bool call_reply(struct call *call, cJSON *parameters, const int *fds, size_t n_fds);

/* Sends a reply that others will follow; the call needs `more`. `parameters` is consumed. Returns false if it was left
 * out, because the client has not read what went before. */
bool call_continue(struct call *call, cJSON *parameters);

/* As call_continue(), for replies that must not be left out: a client that is too far behind is given up, and the call
 * will be abandoned. Returns false in that case. */
bool call_continue_all(struct call *call, cJSON *parameters);

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
 * room for FRAME_FDS_MAX. Returns true; or false after the call was failed, and then has taken none. */
bool call_take_fds(struct call *call, const cJSON *indexes, int *fds, size_t *ret_n);
