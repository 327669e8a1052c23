/* The daemon as a systemd service: the socket that systemd passes, notifications to systemd, and the watchdog.
 *
 * Without systemd all functions succeed and do nothing. Loop thread only. */
#pragma once

#include "daemon/keep/store.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct service;

/* What the owner tells of itself. `context` is the owner's. */
struct service_owner {
    /* Whether something has hung since before that time, by uv_hrtime(). */
    bool (*hangs)(void *context, uint64_t since_before);

    /* Grows while there is progress. */
    uint64_t (*steps)(void *context);
    void *context;
};

/* Notifies systemd's watchdog from the loop, if one is configured, unless something has hung for as long as the
 * watchdog waits: if that, or the loop itself, hangs, systemd restarts the daemon. */
int service_new(uv_loop_t *loop, const struct service_owner *owner, struct service **ret);

/* NULL is fine. */
void service_close(struct service *service);

/* What the service manager handed over at the start. */
struct service_handed {
    int socket; /* the one listening Unix stream socket. -ENOENT: none; -EINVAL: several, or something else */
    struct store_entry *kept; /* from the file descriptor store; the caller frees it */
    size_t n_kept;
};

/* Once, before descriptors are opened. 0; -ENOMEM; or the errno of sd_listen_fds_with_names(). */
int service_take(struct service_handed *ret);

/* Requests are answered from now on. */
void service_ready(const char *status);

/* The daemon ends. While it does, and there is progress, systemd is asked to wait longer. */
void service_stopping(struct service *service);
void service_status(const char *status);
