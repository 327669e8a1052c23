/* What the files of the library share: the connection, and how a call fails on it. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"

#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/queue.h>
#include <sys/types.h>

/* The longest reply that is taken: room for what Show tells of a model with a few hundred thousand tensors. */
#define CLIENT_REPLY_MAX (64u << 20)

/* What the daemon takes at most. */
#define CLIENT_REQUEST_MAX (256u << 10)

/* A message for people, its NUL included. */
#define CLIENT_MESSAGE_SIZE 1024u

struct rf_client {
    int socket;
    pid_t process; /* that connected; in one forked from it nothing is said on the socket */
    bool broken;   /* no call can succeed any more */
    bool calling;  /* a call is under way, so that none may begin */
    bool used;     /* a request was sent */
    struct frame_reader *reader;
    struct frame_writer *writer;
    LIST_HEAD(, rf_model) models;
    rf_draining_fn *draining; /* or NULL */
    void *draining_context;

    /* Of the last call. */
    char message[CLIENT_MESSAGE_SIZE];
    char *error_name;       /* NULL: it was not the daemon that said no */
    char *error_parameters; /* or NULL */
};

/* This process was forked from the one that connected. */
bool client_is_forked(const rf_client *client);

/* Forgets the last call's failure. */
void client_clear(rf_client *client);

/* Words a failure, and returns `error`, a negative errno. Control bytes, which may be a file's, become '?'. The name
 * and parameters of an error of the daemon are dropped: whoever words such an error sets them after this. Words what
 * rf_error_message(NULL) gives if client is NULL. */
int client_fail(rf_client *client, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* As client_fail(); the connection is of no more use. Frees nothing. */
int client_break(rf_client *client, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* A call of the library's own. */
struct call {
    const char *method;
    const char *parameters; /* JSON text, or NULL */
    bool more;
    const int *fds; /* borrowed */
    size_t n_fds;

    /* Takes a reply, or is NULL. *parameters is an object; it keeps it, if it likes, by setting it to NULL. Takes
     * descriptors from the message. What it returns, if not 0, ends the call, which returns it; with replies still to
     * come this ends the connection, too. */
    int (*reply)(void *context, cJSON **parameters, bool continues, struct frame_message *message);
    void *context;
};

/* Makes a call. Returns 0, or a negative errno, or what `reply` returned. Clears the last failure and words its own,
 * but not one of `reply`. */
int client_call(rf_client *client, const struct call *call);

/* Gives a reply to a function of the library's user, as text; NULL: to none. Returns what that returned, after it
 * worded a failure if that is not 0; or a negative errno. */
int client_give(rf_client *client, rf_reply_fn *reply, void *context, const cJSON *parameters, bool continues,
                struct frame_message *message);

/* The same with the progress that stands in a reply to `method`. Breaks the connection if it is none. */
int client_progress(rf_client *client, const char *method, const cJSON *progress, rf_progress_fn *function,
                    void *context);

/* Detaches without telling the daemon, and frees. */
void model_free(rf_model *model);
