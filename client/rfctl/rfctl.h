/* What the commands share: the daemon they talk to, and how they end.
 *
 * A command is a function: it gets the words behind its name, says what there is to say, and returns the exit status of
 * the program. It stands in the table in main.c. */
#pragma once

#include "client/rfctl/interrupt.h"
#include "client/rfctl/options.h"
#include "client/rfctl/refusal.h"
#include "client/rocmforge.h"

#include <cjson/cJSON.h>

enum status {
    STATUS_DONE = 0,
    STATUS_REFUSED = 1, /* the daemon said no, or a file, or the output */
    STATUS_USAGE = 2,
    STATUS_NO_DAEMON = 3,
    STATUS_INTERRUPTED = INTERRUPT_STATUS,
};

struct rfctl {
    struct options options;
    bool replies;     /* print the daemon's replies as they are: --json, unless a command has JSON of its own */
    char **arguments; /* of the command, as many as it takes, NULL behind the last */
    rf_client *client;
    bool hurried; /* a daemon that takes long to answer counts as none */
};

int command_cancel(struct rfctl *ctl);
int command_devices(struct rfctl *ctl);
int command_dump(struct rfctl *ctl);
int command_inspect(struct rfctl *ctl);
int command_load(struct rfctl *ctl);
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

/* Connects, unless that was done. Returns STATUS_DONE, or STATUS_NO_DAEMON after it said why.
 *
 * Here and below, to say why is to write a sentence to standard error and, with --json, an error to standard output. */
int ctl_connect(struct rfctl *ctl);

/* Says that something failed, "cannot `what`: ", and why. `error`: what a function of the library returned. Returns the
 * exit status for that. */
int ctl_fail(const struct rfctl *ctl, int error, const char *what);

/* The same for what failed here, in words of rfctl's own. Returns STATUS_REFUSED. */
int ctl_refuse(const struct rfctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes only the error, {"error": `name`, "parameters": ...}, and that only with --json. `parameters` are JSON text;
 * NULL: none. */
void ctl_print_error(const struct rfctl *ctl, const char *name, const char *parameters);

/* Takes the replies of a call: prints them if ctl->replies says so, and hands them on. */
struct ctl_receiver {
    const struct rfctl *ctl;
    const char *what; /* "load x.gguf": for ctl_fail() */
    /* Gets each reply. Returns 0 or a negative errno. */
    int (*reply)(void *context, const cJSON *reply, bool last);
    void *context;
    struct refusal_words words;
    int output; /* the error of standard output that ended the call */
};

/* An rf_reply_fn, whose context is a receiver. */
int ctl_receive(void *receiver, const char *parameters, int continues, int *fds, size_t n_fds);

/* The exit status for the call, which returned r, after it said what went wrong. */
int ctl_received(const struct ctl_receiver *receiver, int r);

/* A call to make. What is not said is NULL or 0. */
struct ctl_call {
    const char *method;
    cJSON *parameters; /* freed by ctl_call() */
    unsigned flags;
    const char *what; /* "load x.gguf": for ctl_fail() */
    /* As in a receiver. */
    int (*reply)(void *context, const cJSON *reply, bool last);
    void *context;
    struct refusal_words words;
};

/* Connects and calls. Returns STATUS_DONE; or another exit status after it said why. */
int ctl_call(struct rfctl *ctl, struct ctl_call call);

/* A call with one reply, which the caller deletes. */
int ctl_ask(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what, cJSON **ret);

/* The same, with what its errors mean to the command. */
int ctl_ask_with(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what,
                 const struct refusal_words *words, cJSON **ret);

/* An object with one text in it. */
cJSON *ctl_name(const char *key, const char *value);

/* The model's name, and the deadline if one was given. */
cJSON *ctl_model(const struct rfctl *ctl);

/* For the table of a file's or a model's metadata, and of tensors: arrays of Metadata and Tensor of the wire. */
void show_metadata(const cJSON *metadata);
void show_tensors(const cJSON *tensors);
