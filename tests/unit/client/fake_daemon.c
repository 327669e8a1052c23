#include "fake_daemon.h"

#include "proto/frame.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: %m\n", __FILE__, __LINE__, #condition);                                        \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct fake {
    fake_serve_fn *serve;
    void *context;
    char folder[32];
    struct sockaddr_un address;
    int listener;
    pthread_t thread;
    struct frame_reader *reader;
    struct frame_message message;
};

static void *fake_run(void *context)
{
    struct fake *fake = context;
    int socket = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
    if (socket < 0) /* shut down before a client came */
        return NULL;
    fake->serve(fake, socket);
    close(socket);
    return NULL;
}

struct fake *fake_start(fake_serve_fn *serve, void *context)
{
    struct fake *fake = calloc(1, sizeof(*fake));
    MUST(fake);
    fake->serve = serve;
    fake->context = context;
    strcpy(fake->folder, "/tmp/rocmforge-test-XXXXXX");
    MUST(mkdtemp(fake->folder));
    fake->address.sun_family = AF_UNIX;
    snprintf(fake->address.sun_path, sizeof(fake->address.sun_path), "%s/socket", fake->folder);
    fake->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(fake->listener >= 0);
    MUST(bind(fake->listener, (struct sockaddr *)&fake->address, sizeof(fake->address)) == 0);
    MUST(listen(fake->listener, 4) == 0);
    MUST(frame_reader_new(1u << 20, &fake->reader) == 0);
    MUST(pthread_create(&fake->thread, NULL, fake_run, fake) == 0);
    return fake;
}

void fake_stop(struct fake *fake)
{
    shutdown(fake->listener, SHUT_RDWR);
    MUST(pthread_join(fake->thread, NULL) == 0);
    close(fake->listener);
    unlink(fake->address.sun_path);
    rmdir(fake->folder);
    frame_reader_free(fake->reader);
    free(fake);
}

const char *fake_path(const struct fake *fake)
{
    return fake->address.sun_path;
}

void *fake_context(const struct fake *fake)
{
    return fake->context;
}

const char *fake_request(struct fake *fake, int socket, int **ret_fds, size_t *ret_n_fds)
{
    int r;
    while ((r = frame_reader_next(fake->reader, &fake->message)) == 0)
        if (frame_reader_fill(fake->reader, socket) <= 0)
            return NULL;
    MUST(r == 1);
    if (ret_fds)
        *ret_fds = fake->message.fds;
    if (ret_n_fds)
        *ret_n_fds = fake->message.n_fds;
    return fake->message.text;
}

int fake_send_bytes(int socket, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        ssize_t n = send(socket, at, size, MSG_NOSIGNAL);
        if (n < 0)
            return 0;
        at += n;
        size -= (size_t)n;
    }
    return 1;
}

void fake_send(int socket, const char *text, const int *fds, size_t n_fds)
{
    struct frame_writer *writer;
    MUST(frame_writer_new(16u << 20, &writer) == 0);
    MUST(frame_writer_put(writer, text, strlen(text), fds, n_fds) == 0);
    (void)frame_writer_flush(writer, socket);
    frame_writer_free(writer);
}

int fake_memfd(const void *bytes, size_t n, size_t size, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    MUST(fd >= 0);
    MUST(n == 0 || write(fd, bytes, n) == (ssize_t)n);
    MUST(ftruncate(fd, (off_t)size) == 0);
    MUST(fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}
