/* The socket that clients connect to: made, or taken over from systemd, and accepted from.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"

#include <uv.h>

/* Connections open at once. One more is told so, and closed. */
#define LISTENER_CONNECTIONS_MAX 1024u

struct listener;

/* Listens at `path`. Makes the folder if only the last part is missing. A socket there that nobody answers on is
 * replaced; one that a living daemon owns is left alone, with -EADDRINUSE, and what is no socket with -ENOTSOCK. */
int listener_new(uv_loop_t *loop, struct conns *conns, const char *path, struct listener **ret);

/* Takes over a listening socket, which is closed if that fails: with -ENOMEM, or as libuv cannot poll it. */
int listener_new_fd(uv_loop_t *loop, struct conns *conns, int fd, struct listener **ret);

/* Stops listening; unlinks the path if it is ours. Frees it once the loop lets go of it. NULL is fine. */
void listener_close(struct listener *listener);
