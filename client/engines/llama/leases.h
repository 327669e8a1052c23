/* Keeps a client's leases when the daemon is started anew. A thread waits for the end of the connection; then it
 * connects to the next daemon and takes the leases again, within the time for which that daemon holds the models
 * anyway. */
#pragma once

#include "client/rocmforge.h"

struct leases;

/* Begins. From now on the thread uses the client at any time: whoever else calls a function of librocmforge that may
 * fail on the client, or on one of its models, does so between leases_lock() and leases_unlock(). The client lives
 * longer than the leases. Returns 0, or a negative errno. */
int leases_keep(rf_client *client, struct leases **ret);

/* NULL is fine. */
void leases_lock(struct leases *leases);
void leases_unlock(struct leases *leases);

/* Ends the thread, which may take some seconds if a daemon does not answer it. In a forked process, which has no such
 * thread, does nothing. NULL is fine. */
void leases_end(struct leases *leases);
