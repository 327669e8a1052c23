/* A daemon in a thread that says what a test wants it to say, to a client on a real socket.
 *
 * Whatever fails in the thread aborts the test program: cmocka's asserts work on the test's own thread only. */
#pragma once

#include <stddef.h>

struct fake;

/* Serves one connection, on the daemon's thread; the socket is closed after it. */
typedef void fake_serve_fn(struct fake *fake, int socket);

/* Listens at a path of its own. `context` is the test's, which does not touch it before fake_stop(). */
struct fake *fake_start(fake_serve_fn *serve, void *context);

/* Waits until the connection was served, which is when the client has closed it at the latest. */
void fake_stop(struct fake *fake);

const char *fake_path(const struct fake *fake);
void *fake_context(const struct fake *fake);

/* On the daemon's thread. */

/* The next request's text, and its descriptors, which live until the next call. NULL at the end of the stream. */
const char *fake_request(struct fake *fake, int socket, int **ret_fds, size_t *ret_n_fds);

/* Bytes as they are. False if the client is gone. */
int fake_send_bytes(int socket, const void *bytes, size_t size);

/* A message, with the NUL behind it, and descriptors beside it, which stay the caller's. */
void fake_send(int socket, const char *text, const int *fds, size_t n_fds);

/* A memfd with these contents, extended to `size` bytes, and seals. */
int fake_memfd(const void *bytes, size_t n, size_t size, int seals);
