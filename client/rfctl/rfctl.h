/* What the commands of rfctl share: the connection to the daemon, calls, and exit statuses.
 *
 * A command is a function. It gets its arguments in struct rfctl, prints its results, and returns the exit status of
 * the program. The table of commands is in main.c. */
#pragma once

#include "client/rfctl/options.h"
#include "client/rfctl/refusal.h"
#include "client/rocmforge.h"

#include <cjson/cJSON.h>

enum status {
    STATUS_DONE = 0,
    STATUS_REFUSED = 1,   /* the daemon refused, or a file or the output failed */
    STATUS_USAGE = 2,     /* wrong options or arguments */
    STATUS_NO_DAEMON = 3, /* no daemon, or the connection was lost */
};

struct rfctl {
    struct options options;
    bool replies;     /* print the daemon's replies unchanged: with --json, unless a command prints JSON of its own */
    char **arguments; /* of the command, as many as it takes; then NULL */
    size_t n_arguments;
    rf_client *client; /* NULL: not connected */
    bool hurried;      /* a call that gets no answer in time counts as no daemon */
};

int command_cancel(struct rfctl *ctl);
int command_devices(struct rfctl *ctl);
int command_dump(struct rfctl *ctl);
int command_inspect(struct rfctl *ctl);
int command_load(struct rfctl *ctl);
int command_metrics(struct rfctl *ctl);
int command_pin(struct rfctl *ctl);
int command_ping(struct rfctl *ctl);
int command_plan(struct rfctl *ctl);
int command_ps(struct rfctl *ctl);
int command_run(struct rfctl *ctl);
int command_show(struct rfctl *ctl);
int command_ttl(struct rfctl *ctl);
int command_unload(struct rfctl *ctl);
int command_unpin(struct rfctl *ctl);
int command_verify(struct rfctl *ctl);
int command_version(struct rfctl *ctl);
int command_watch(struct rfctl *ctl);

/* Connects, unless there is a connection. Returns STATUS_DONE; or STATUS_NO_DAEMON after it reported the error.
 *
 * Here and below, to report an error is to print a sentence to standard error and, with --json, the error in JSON to
 * standard output. */
int ctl_connect(struct rfctl *ctl);

/* From now on, a call that gets no answer for so long fails, as if there were no daemon. 0: calls wait for ever. */
#define CTL_ANSWER_SECONDS 10u
void ctl_hurry(struct rfctl *ctl, unsigned seconds);

/* Reports a failure of the library: "cannot `what`: ", and why. `error` is what the library's function returned.
 * Returns the exit status. */
int ctl_fail(const struct rfctl *ctl, int error, const char *what);

/* Reports a failure in rfctl itself, with this sentence. Returns STATUS_REFUSED. */
int ctl_refuse(const struct rfctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* With --json, prints the error {"error": `name`, "parameters": ...}; else nothing. `parameters` are JSON text; NULL:
 * none.
 */
void ctl_print_error(const struct rfctl *ctl, const char *name, const char *parameters);

/* Receives the replies to a call. Prints them if ctl->replies is true, and passes them on. */
struct ctl_receiver {
    const struct rfctl *ctl;
    const char *what; /* "load x.gguf", for the message of a failure */
    /* Gets each reply; may be NULL. Returns 0 to go on, or a negative errno. */
    int (*reply)(void *context, const cJSON *reply, bool last);
    void *context;
    struct refusal_words words;
    int output; /* the error of standard output that ended the call, a negative errno; 0: none */
};

/* An rf_reply_fn, whose context is a receiver. */
int ctl_receive(void *receiver, const char *parameters, int continues, int *fds, size_t n_fds);

/* The exit status of a call, which returned `r`. Reports a failure. */
int ctl_received(const struct ctl_receiver *receiver, int r);

/* A call to make. Members that are not set are NULL or 0. */
struct ctl_call {
    const char *method;
    cJSON *parameters; /* freed by ctl_call() */
    unsigned flags;
    const char *what; /* "load x.gguf", for the message of a failure */
    /* As in struct ctl_receiver. */
    int (*reply)(void *context, const cJSON *reply, bool last);
    void *context;
    struct refusal_words words;
};

/* Connects, if necessary, and makes the call. Returns STATUS_DONE, or another exit status after it reported the error.
 */
int ctl_call(struct rfctl *ctl, struct ctl_call call);

/* Makes a call with one reply. On success *ret is the reply, which the caller deletes. Returns as ctl_call(). */
int ctl_ask(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what, cJSON **ret);

/* The same, with the command's own words for errors. */
int ctl_ask_with(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what,
                 const struct refusal_words *words, cJSON **ret);

/* A new object with one text. The caller deletes it. */
cJSON *ctl_name(const char *key, const char *value);

/* The parameters of a method that takes a model: `name`, the command's first argument, and `deadline`, if one was
 * given. The caller deletes them. */
cJSON *ctl_model(const struct rfctl *ctl);

/* Print a table of metadata, or of tensors: arrays of Metadata or Tensor, as in the reply to Show. */
void show_metadata(const cJSON *metadata);
void show_tensors(const cJSON *tensors);

/* Prints the whole value of a key of a model's metadata. Returns the exit status. */
int show_value(struct rfctl *ctl, const char *name, const char *key);
