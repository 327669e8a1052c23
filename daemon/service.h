/* The daemon as a systemd service: the socket that systemd passes, notifications to systemd, and the watchdog.
 *
 * Without systemd all functions succeed and do nothing. Loop thread only. */
#pragma once

#include "daemon/keep/store.h"

#include <uv.h>

struct service;

/* Notifies systemd's watchdog from the loop, if one is configured: if the loop hangs, systemd restarts the daemon. */
int service_new(uv_loop_t *loop, struct service **ret);

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
void service_stopping(void);
void service_status(const char *status);
