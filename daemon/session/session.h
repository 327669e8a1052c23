/* A client's leases, and what it was told about them. Each connection has one session, which ends with it.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/model/lease.h"
#include "daemon/wire/conn.h"

/* Hooks of a connection; see struct conn_hooks. The context is not used. */
int session_opened(struct conn *conn, void *context);
void session_closed(struct conn *conn, void *context);

/* Adds "draining" to a reply: the names of models that this client holds leases on, is asked to let go, and was not
 * told of yet. A name counts as told once a reply with it was queued. */
void session_replying(struct conn *conn, cJSON *parameters);
void session_replied(struct conn *conn, bool queued);

/* Keeps descriptors for the client's next Load or Plan: a model may have more files than a message carries. They are
 * taken over, also when it fails. Returns how many there are by now; -E2BIG: more than `most`, -EDQUOT and the limit:
 * more than the user may have; -ENOMEM. */
int session_add_files(struct conn *conn, struct quota *quota, const int *fds, size_t n, size_t most,
                      uint64_t *ret_limit);

/* Gives them to the caller: as many as it returns. `fds` has room for all. */
size_t session_take_files(struct conn *conn, int *fds);

/* Holds the leases of the client at this connection. */
struct lease_holder *session_holder(const struct conn *conn);
