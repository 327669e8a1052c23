/* The connection to the daemon: the struct that the files of the library share. Functions that work on it stand in
 * error.h, call.h and client.c. */
#pragma once

#include "client/rocmforge.h"
#include "proto/frame.h"

#include <stdbool.h>
#include <sys/queue.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>

/* The longest reply that is accepted, in bytes. Show of a model with a few hundred thousand tensors fits. */
#define CLIENT_REPLY_MAX (64u << 20)

/* The longest request, in bytes. The daemon accepts no longer one. */
#define CLIENT_REQUEST_MAX (256u << 10)

/* Bytes of an error message for people, with its NUL. */
#define CLIENT_MESSAGE_SIZE 1024u

struct rf_client {
    int socket;
    struct sockaddr_un address; /* of the daemon */
    struct timeval patience;    /* SO_RCVTIMEO, which the program may have set, for the next socket; 0: for ever */
    pid_t process;              /* the process that connected; a process forked from it must not use the socket */
    bool broken;                /* the connection failed: every further call fails too */
    bool calling;               /* a call is running, so no other call may begin */
    bool used;                  /* at least one request was sent */
    struct frame_reader *reader;
    struct frame_writer *writer;
    LIST_HEAD(, rf_model) models; /* attached through this connection */
    rf_draining_fn *draining;     /* or NULL */
    void *draining_context;

    /* The failure of the last call. */
    char message[CLIENT_MESSAGE_SIZE];
    char *error_name;       /* NULL: the failure did not come from the daemon */
    char *error_parameters; /* or NULL */
};

/* Connects a socket to the daemon, and makes the buffers for what is read and written. Gives up what the client had of
 * these, but for the time that it waits for an answer. Returns 0, or a negative errno; then the client has none. The
 * client's `address` is set. */
int client_open(rf_client *client);
