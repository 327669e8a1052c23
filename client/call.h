/* Calls to the daemon: one request and one reply, or several replies. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>

/* A call that the library makes. */
struct call {
    const char *method;
    const char *parameters; /* JSON text, or NULL */
    bool more;              /* several replies are accepted */
    const int *fds;         /* borrowed */
    size_t n_fds;

    /* Gets each reply; may be NULL. *parameters is an object; the function keeps it if it sets *parameters to NULL. It
     * may take descriptors out of the message. Returns 0 to go on; any other value ends the call, and client_call()
     * returns that value. If further replies are still to come, the connection is closed too. */
    int (*reply)(void *context, cJSON **parameters, bool continues, struct frame_message *message);
    void *context;
};

/* Makes a call and waits for its last reply. Returns 0, a negative errno, or what `reply` returned. Clears the failure
 * of the last call first. Records its own failures; a failure of `reply` is recorded by `reply`. */
int client_call(rf_client *client, const struct call *call);

/* Passes a reply, as JSON text, to a function of the library's user; NULL: to none. Returns 0; what the function
 * returned if that is not 0, after a failure was recorded; or a negative errno. */
int client_give(rf_client *client, rf_reply_fn *reply, void *context, const cJSON *parameters, bool continues,
                struct frame_message *message);

/* Passes the progress out of a reply to `method` to a function of the library's user; NULL: to none. Returns as
 * client_give(). If `progress` is not an object Progress of the wire, the connection is closed: -EPROTO. */
int client_progress(rf_client *client, const char *method, const cJSON *progress, rf_progress_fn *function,
                    void *context);

/* True in a process that was forked from the one that connected. */
bool client_is_forked(const rf_client *client);
