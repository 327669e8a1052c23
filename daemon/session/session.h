/* A client's leases, and which draining models the client was told about. Each connection has one session, which ends
 * with the connection.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/model/lease.h"
#include "daemon/wire/conn.h"

/* Something of a client's that ends with its connection, and that it names by a number. The owner keeps it until it is
 * untied, or cut. */
struct session_tie {
    LIST_ENTRY(session_tie) link;
    uint64_t id;
    void (*cut)(struct session_tie *tie); /* the connection ends; the tie is undone already */
};

/* Hooks of a connection; see struct conn_hooks. The context is not used. */
int session_opened(struct conn *conn, void *context);
bool session_closed(struct conn *conn, void *context);

/* Adds "draining" to a reply: the names of draining models on which this client holds leases, and which it was not told
 * about yet. They tell the client to detach. A name counts as told when a reply with the name was queued. */
void session_replying(struct conn *conn, cJSON *parameters);
void session_replied(struct conn *conn, bool queued);

/* Whether session_replying() would add something now. */
bool session_has_to_tell(const struct conn *conn);

/* Keeps descriptors for the client's next Load or Plan: a model may have more files than one message can carry. Takes
 * the descriptors over, also when it fails. Returns how many the session has now; -E2BIG: more than `most`; -EDQUOT and
 * the limit: more than the user may have; -ENOMEM. */
int session_add_files(struct conn *conn, struct quota *quota, const int *fds, size_t n, size_t most,
                      uint64_t *ret_limit);

/* Gives the kept descriptors to the caller, and returns their number. `fds` has room for all. */
size_t session_take_files(struct conn *conn, int *fds);

/* Ties it to the connection. The owner has set `id` and `cut`. */
void session_tie(struct conn *conn, struct session_tie *tie);

void session_untie(struct session_tie *tie);

/* What the connection has with this number; NULL: nothing. */
struct session_tie *session_find_tie(const struct conn *conn, uint64_t id);

/* The holder of the leases of this connection's client. It lives as long as the connection. */
struct lease_holder *session_holder(const struct conn *conn);
