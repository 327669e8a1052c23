/* The daemon as a systemd service: the sockets that it is handed, what it tells, and the watchdog that it feeds.
 *
 * Everything is fine, and does nothing, where there is no systemd. Loop thread only. */
#pragma once

#include <uv.h>

struct service;

/* Begins to feed the watchdog from the loop, if systemd wants that: a loop that hangs does not feed it. */
int service_new(uv_loop_t *loop, struct service **ret);

/* NULL is fine. */
void service_close(struct service *service);

/* The one listening Unix stream socket that systemd handed over; -ENOENT if there is none, -EINVAL if it is not one. */
int service_socket(void);

/* Requests are answered from now on. */
void service_ready(const char *status);
void service_stopping(void);
void service_status(const char *status);
