#include "daemon/wire/listener.h"

#include "daemon/base/log.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Clients that are accepted before the loop does other work. */
#define ACCEPT_BATCH 64

/* How long the daemon waits after it could not accept a client because there was no memory or no descriptor. Without
 * the pause libuv would report the same client again at once. */
#define ACCEPT_PAUSE_MS 200

struct listener {
    uv_poll_t poll;
    uv_timer_t pause;
    unsigned handles; /* libuv handles that are not closed yet */
    int socket;
    int lock;  /* file lock beside the socket: the path is this daemon's; -1: it is systemd's */
    int spare; /* closed for a moment when descriptors run out, to accept a client and tell it so; -1: it could not be
               opened again */
    bool starved; /* the failure was logged, and no client was accepted since */
    char *path;
    struct conns *conns;
};

static void spare_open(struct listener *listener)
{
    if (listener->spare < 0)
        listener->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Descriptors have run out: gives up the spare one to accept the client and tell it. False if that failed too. */
static bool refuse_with_spare(struct listener *listener)
{
    if (listener->spare < 0)
        return false;
    close(listener->spare);
    listener->spare = -1;
    int socket = accept4(listener->socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket >= 0) {
        conn_refuse(listener->conns, socket, error_no_descriptors());
        close(socket);
    }
    spare_open(listener);
    return socket >= 0;
}

static void listener_ready(uv_poll_t *poll, int status, int events);

static void pause_over(uv_timer_t *timer)
{
    struct listener *listener = timer->data;
    int r = uv_poll_start(&listener->poll, UV_READABLE, listener_ready);
    if (r < 0)
        log_error("the listening socket failed: %s", uv_strerror(r));
}

/* accept4() failed with `error`. */
static void accept_failed(struct listener *listener, int error)
{
    if (error == EAGAIN || error == EINTR || error == ECONNABORTED)
        return; /* no further client, or it has gone already */
    if (!listener->starved)
        log_warning("a client cannot be accepted: %s", strerror(error));
    listener->starved = true;
    if ((error == EMFILE || error == ENFILE) && refuse_with_spare(listener))
        return;
    uv_poll_stop(&listener->poll);
    uv_timer_start(&listener->pause, pause_over, ACCEPT_PAUSE_MS, 0);
}

static void listener_ready(uv_poll_t *poll, int status, int events)
{
    struct listener *listener = poll->data;
    (void)events;
    if (status < 0) {
        log_error("the listening socket failed: %s", uv_strerror(status));
        return;
    }
    spare_open(listener);
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int socket = accept4(listener->socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (socket < 0) {
            accept_failed(listener, errno);
            return;
        }
        listener->starved = false;
        if (conns_count(listener->conns) >= LISTENER_CONNECTIONS_MAX) {
            conn_refuse(listener->conns, socket, error_limit("connections", LISTENER_CONNECTIONS_MAX));
            close(socket);
            continue;
        }
        int r = conn_open(listener->conns, socket);
        if (r == -EDQUOT)
            continue; /* the client was told */
        if (r < 0)
            log_warning("a client cannot be served: %s", strerror(-r));
    }
}

static void listener_free(struct listener *listener)
{
    if (listener->socket >= 0)
        close(listener->socket);
    if (listener->lock >= 0)
        close(listener->lock);
    if (listener->spare >= 0)
        close(listener->spare);
    free(listener->path);
    free(listener);
}

static struct listener *listener_alloc(struct conns *conns)
{
    struct listener *listener = calloc(1, sizeof(*listener));
    if (!listener)
        return NULL;
    listener->socket = listener->lock = listener->spare = -1;
    spare_open(listener);
    listener->conns = conns;
    return listener;
}

static int listener_begin(uv_loop_t *loop, struct listener *listener)
{
    int r = uv_poll_init(loop, &listener->poll, listener->socket);
    if (r < 0)
        return r;
    uv_timer_init(loop, &listener->pause);
    listener->poll.data = listener->pause.data = listener;
    return uv_poll_start(&listener->poll, UV_READABLE, listener_ready);
}

int listener_new_fd(uv_loop_t *loop, struct conns *conns, int fd, struct listener **ret)
{
    struct listener *listener = listener_alloc(conns);
    if (!listener) {
        close(fd);
        return -ENOMEM;
    }
    listener->socket = fd;
    int r = listener_begin(loop, listener);
    if (r < 0) {
        listener_free(listener);
        return r;
    }
    *ret = listener;
    return 0;
}

/* Makes the folder of the socket, if its parent is there. */
static int make_folder(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    int r = mkdir(dirname(copy), 0755) < 0 && errno != EEXIST ? -errno : 0;
    free(copy);
    return r == -ENOENT || r == -EACCES ? 0 : r; /* the error of opening the lock or the socket says more */
}

/* Takes the file lock beside the socket. Without it, two daemons that start at the same time could both replace a stale
 * socket. */
static int take_lock(const char *path, int *ret)
{
    char name[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 8];
    snprintf(name, sizeof(name), "%s.lock", path);
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        int error = errno;
        close(fd);
        return error == EWOULDBLOCK ? -EADDRINUSE : -error;
    }
    *ret = fd;
    return 0;
}

/* 1 if there is a socket at the path, 0 if nothing is there, -ENOTSOCK if something else is. */
static int find_socket(const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    return S_ISSOCK(st.st_mode) ? 1 : -ENOTSOCK;
}

/* -EADDRINUSE if somebody answers at the path; removes a socket that nobody answers on. */
static int clear_path(const struct sockaddr_un *address)
{
    int found = find_socket(address->sun_path);
    if (found <= 0)
        return found;
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return -errno;
    int r = connect(probe, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;
    close(probe);
    if (r != -ECONNREFUSED)
        return -EADDRINUSE; /* it answers, or its queue is full */
    return unlink(address->sun_path) < 0 ? -errno : 0;
}

int listener_new(uv_loop_t *loop, struct conns *conns, const char *path, struct listener **ret)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    struct listener *listener = listener_alloc(conns);
    if (!listener)
        return -ENOMEM;
    int r = find_socket(path); /* do not make a lock file beside something that is not a socket */
    if (r != -ENOTSOCK)
        r = make_folder(path);
    if (r == 0)
        r = take_lock(path, &listener->lock);
    if (r == 0)
        r = clear_path(&address);
    if (r < 0)
        goto fail;
    listener->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->socket < 0 || bind(listener->socket, (struct sockaddr *)&address, sizeof(address)) < 0) {
        r = -errno;
        goto fail;
    }
    listener->path = strdup(path);
    if (!listener->path)
        r = -ENOMEM;
    else if (listen(listener->socket, SOMAXCONN) < 0)
        r = -errno;
    else
        r = listener_begin(loop, listener);
    if (r < 0) {
        unlink(path);
        goto fail;
    }
    *ret = listener;
    return 0;

fail:
    listener_free(listener);
    return r;
}

static void listener_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;
    if (--listener->handles == 0)
        listener_free(listener);
}

void listener_close(struct listener *listener)
{
    if (!listener)
        return;
    if (listener->path)
        unlink(listener->path);
    uv_poll_stop(&listener->poll);
    listener->handles = 2;
    uv_close((uv_handle_t *)&listener->poll, listener_closed);
    uv_close((uv_handle_t *)&listener->pause, listener_closed);
}
