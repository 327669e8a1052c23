/* Fuzzes the framing: a stream, cut into pieces anywhere and with descriptors anywhere, gives the messages that stand
 * in it, in order, each descriptor with one of them, and leaves no descriptor open.
 *
 * Of the input, each piece is a byte (low six bits: its length, up to 63 bytes; high two bits: descriptors beside it),
 * followed by so many bytes of the stream. */
#include "proto/frame.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX = 200 };

struct state {
    int in, out;
    struct frame_reader *reader;
    const uint8_t *expected; /* the next message */
    size_t stream_size;
    uint8_t stream[1u << 16];
    unsigned n_sent, n_received; /* descriptors */
};

/* The lowest number that no descriptor has. */
static int lowest_free(void)
{
    int fd = dup(STDERR_FILENO);
    assert(fd >= 0);
    close(fd);
    return fd;
}

/* A piece that the kernel has no room for, because too many wait, is left out. */
static void send_piece(struct state *s, const uint8_t *bytes, size_t size, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n_fds > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(c) + i * sizeof(int), &s->in, sizeof(int));
    }
    ssize_t n = sendmsg(s->out, &header, MSG_NOSIGNAL);
    if (n < 0 && (errno == EAGAIN || errno == ETOOMANYREFS))
        return;
    assert(n == (ssize_t)size);
    memcpy(s->stream + s->stream_size, bytes, size);
    s->stream_size += size;
    s->n_sent += n_fds;
}

/* Takes what there is. Returns false once the stream cannot go on. */
static bool take(struct state *s)
{
    struct frame_message message;
    int r;
    while ((r = frame_reader_next(s->reader, &message)) == 1) {
        assert(message.size <= MAX && message.size == strlen(message.text));
        assert(memcmp(message.text, s->expected, message.size + 1) == 0);
        s->expected += message.size + 1;
        assert(s->expected <= s->stream + s->stream_size);
        s->n_received += message.n_fds;
        assert(message.n_fds <= FRAME_FDS_MAX);
        if (message.n_fds > 0) {
            int fd = frame_message_take_fd(&message, 0);
            assert(fd >= 0);
            close(fd);
        }
    }
    assert(r == 0 || r == -EMSGSIZE);
    return r == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct state state;
    struct state *s = &state;
    memset(s, 0, sizeof(*s));
    s->expected = s->stream;
    int lowest = lowest_free(), ends[2];
    assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
    s->in = ends[0];
    s->out = ends[1];
    assert(frame_reader_new(MAX, &s->reader) == 0);

    bool alive = true;
    while (alive && size > 0) {
        size_t n = data[0] & 63;
        unsigned n_fds = data[0] >> 6;
        data++, size--;
        n = n < size ? n : size;
        if (n == 0 || s->stream_size + n > sizeof(s->stream))
            continue;
        send_piece(s, data, n, n_fds);
        data += n, size -= n;
        int r = 1;
        /* Some pieces are left to wait, so that several are received at once. */
        while (alive && n_fds != 2 && r == 1) {
            r = frame_reader_fill(s->reader, s->in);
            assert(r == 1 || r == -EAGAIN || r == -ENOBUFS || r == -EMSGSIZE || r == -E2BIG || r == -EMFILE);
            alive = r != -EMSGSIZE && r != -E2BIG && r != -EMFILE && take(s);
            if (r == -ENOBUFS)
                r = 1;
        }
    }
    assert(s->n_received <= s->n_sent);
    frame_reader_free(s->reader);
    close(s->in);
    close(s->out);
    assert(lowest_free() == lowest); /* nothing was left open */
    return 0;
}
