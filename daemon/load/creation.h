/* A model that a client makes itself: Create gives it memory to write to, Publish seals the memory.
 *
 * A creation is a load without files (load.h): it takes its name and its memory, and waits for them, as any load does.
 * What a load's states mean for it:
 *
 *     IDENTIFYING   looks for a model with the same key. One that is there is joined; one that another client is making
 *                   is waited for: if that ends without a model, this one goes on
 *     OPENING       parses the list of tensors
 *     FILLING       the client has the memory, until it calls Publish. A Publish that is refused changes nothing
 *     SEALING       passed through at once, when the memory is sealed
 *
 * It ends without a model when the connection of its client ends, or by Cancel.
 *
 * Loop thread only. */
#pragma once

#include "daemon/load/client_text.h"
#include "daemon/load/load.h"
#include "daemon/session/session.h"

struct creation {
    /* The request. */
    char *key;                  /* NULL: none */
    struct client_text tensors; /* not given: Publish tells them */
    uint64_t bytes;             /* of the memory; 0: as many as the tensors need */
    bool wait;                  /* for another client that makes a model with this key */
    bool any_publisher;         /* a model with this key may also be another user's, who is not trusted */

    struct load *load;
    bool tied; /* the client has the memory */
    struct session_tie tie;
    struct call *publishing; /* Publish, while a worker seals; NULL if its client is gone */
    bool lease, pin;         /* of Publish */
    int64_t ttl;
    struct client_text metadata, late_tensors;
};

/* An empty one, for the caller to fill in and to pass to load_begin() in the request. NULL: no memory. */
struct creation *creation_new(void);

/* Frees it with all that it owns. NULL is fine. */
void creation_free(struct creation *creation);

/* The creation with this number that the connection's client has the memory of, and can publish now; NULL: there is
 * none. */
struct creation *creation_find(const struct conn *conn, uint64_t id);

/* What Publish asks for. */
struct publish_request {
    struct client_text metadata, tensors; /* taken over */
    bool lease, pin;
    int64_t ttl; /* seconds; -1: for ever */
};

/* Publishes; the call is answered later. Tensors are given if, and only if, the creation has none yet. */
void creation_publish(struct creation *creation, const struct publish_request *request, struct call *call);

/* Whether the creation was told its tensors by Create. */
bool creation_has_tensors(const struct creation *creation);
