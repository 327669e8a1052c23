/* The socket that clients connect to: made, or taken over from systemd, and accepted from.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"

#include <uv.h>

/* The most connections at a time. A further client is told so, and its connection closed. */
#define LISTENER_CONNECTIONS_MAX 1024u

struct listener;

/* Listens at `path`. Makes the last folder of the path if it is missing. A socket at the path that no process answers
 * on is replaced. -EADDRINUSE: a daemon answers there. -ENOTSOCK: something at the path is not a socket. */
int listener_new(uv_loop_t *loop, struct conns *conns, const char *path, struct listener **ret);

/* Takes over a listening socket, and closes it on failure: -ENOMEM, or libuv's error of polling it. */
int listener_new_fd(uv_loop_t *loop, struct conns *conns, int fd, struct listener **ret);

/* Stops listening, and unlinks the path if this daemon made it. The memory is freed when libuv has closed the handles.
 * NULL is fine. */
void listener_close(struct listener *listener);
