/* The daemon as a systemd service: the socket that systemd passes, notifications to systemd, and the watchdog.
 *
 * Without systemd all functions succeed and do nothing. Loop thread only. */
#pragma once

#include <uv.h>

struct service;

/* Notifies systemd's watchdog from the loop, if one is configured: if the loop hangs, systemd restarts the daemon. */
int service_new(uv_loop_t *loop, struct service **ret);

/* NULL is fine. */
void service_close(struct service *service);

/* The one listening Unix stream socket that systemd passed. -ENOENT: none; -EINVAL: several, or something else. */
int service_socket(void);

/* Requests are answered from now on. */
void service_ready(const char *status);
void service_stopping(void);
void service_status(const char *status);
