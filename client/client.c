/* Connecting to the daemon, and closing the connection. */
#include "client/attach.h"
#include "client/connection.h"
#include "client/error.h"
#include "proto/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Under /run for the daemon of the system, under $XDG_RUNTIME_DIR for one of a user. */
#define SOCKET_IN_RUN "/rocmforge/io.rocmforge"

/* How long to try while the daemon is too busy to accept connections, and the pause between two tries. */
#define CONNECT_TIMEOUT_MS 5000
#define CONNECT_RETRY_MS   10

const char *rf_version(void)
{
    return ROCMFORGE_VERSION;
}

static int set_path(struct sockaddr_un *address, const char *folder, const char *path)
{
    int n = snprintf(address->sun_path, sizeof(address->sun_path), "%s%s", folder, path);
    if (n < 0 || (size_t)n >= sizeof(address->sun_path))
        return client_fail(NULL, -ENAMETOOLONG, "a socket's path has at most %zu bytes, and this has more: %s%s",
                           sizeof(address->sun_path) - 1, folder, path);
    return 0;
}

/* The daemon's socket: the path that the caller gave, else the environment's, else the system's daemon if its socket
 * exists, else the user's. */
static int find_socket(const char *path, struct sockaddr_un *ret)
{
    if (!path) {
        path = secure_getenv("ROCMFORGE_SOCKET");
        if (path && !path[0])
            path = NULL;
    }
    if (path)
        return set_path(ret, "", path);
    const char *runtime = secure_getenv("XDG_RUNTIME_DIR");
    if (access("/run" SOCKET_IN_RUN, F_OK) < 0 && runtime && runtime[0])
        return set_path(ret, runtime, SOCKET_IN_RUN);
    return set_path(ret, "/run", SOCKET_IN_RUN);
}

/* A connect() with a time limit, which signals do not end. The socket is non-blocking. On a Unix socket connect() then
 * returns at once: with EAGAIN while the daemon's queue of connections to accept is full, and never with EINPROGRESS.
 */
static int connect_timed(int socket, const struct sockaddr_un *address)
{
    int64_t deadline = clock_ms() + CONNECT_TIMEOUT_MS;
    while (connect(socket, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (clock_ms() >= deadline)
            return -ETIMEDOUT;
        if (errno == EAGAIN)
            poll(NULL, 0, CONNECT_RETRY_MS);
    }
    return 0;
}

static int connect_fail(int error, const char *path)
{
    const char *hint = "";
    if (error == -ENOENT || error == -ECONNREFUSED)
        hint = "; is rocmforged running?";
    else if (error == -EACCES)
        hint = "; its owner decides who may use it";
    return client_fail(NULL, error, "cannot connect to %s: %s%s", path, strerror(-error), hint);
}

int client_open(rf_client *client)
{
    if (client->socket >= 0) {
        socklen_t size = sizeof(client->patience);
        (void)getsockopt(client->socket, SOL_SOCKET, SO_RCVTIMEO, &client->patience, &size);
        close(client->socket);
    }
    frame_reader_free(client->reader);
    frame_writer_free(client->writer);
    client->reader = NULL;
    client->writer = NULL;
    client->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int r = client->socket < 0 ? -errno : connect_timed(client->socket, &client->address);
    if (r == 0 && fcntl(client->socket, F_SETFL, 0) < 0)
        r = -errno;
    if (r == 0 && setsockopt(client->socket, SOL_SOCKET, SO_RCVTIMEO, &client->patience, sizeof(client->patience)) < 0)
        r = -errno;
    if (r == 0)
        r = frame_reader_new(CLIENT_REPLY_MAX, &client->reader);
    if (r == 0)
        r = frame_writer_new(CLIENT_REQUEST_MAX + 1, &client->writer);
    client->used = false;
    client->broken = r < 0;
    if (r == 0)
        return 0;
    frame_reader_free(client->reader);
    client->reader = NULL;
    if (client->socket >= 0)
        close(client->socket);
    client->socket = -1;
    return r;
}

int rf_connect(const char *path, rf_client **ret)
{
    *ret = NULL;
    client_clear(NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int r = find_socket(path, &address);
    if (r < 0)
        return r;
    rf_client *client = calloc(1, sizeof(*client));
    if (!client)
        return connect_fail(-ENOMEM, address.sun_path);
    LIST_INIT(&client->models);
    client->process = getpid();
    client->address = address;
    client->socket = -1;
    r = client_open(client);
    if (r < 0) {
        rf_close(client);
        return connect_fail(r, address.sun_path);
    }
    *ret = client;
    return 0;
}

void rf_close(rf_client *client)
{
    if (!client)
        return;
    rf_model *model;
    while ((model = LIST_FIRST(&client->models)))
        model_free(model);
    if (client->socket >= 0)
        close(client->socket);
    frame_reader_free(client->reader);
    frame_writer_free(client->writer);
    client_clear(client);
    free(client);
}

void rf_on_draining(rf_client *client, rf_draining_fn *function, void *context)
{
    client->draining = function;
    client->draining_context = context;
}

int rf_client_fd(const rf_client *client)
{
    return client->socket;
}
