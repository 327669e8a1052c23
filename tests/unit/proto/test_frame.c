#include "proto/frame.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

enum { MAX = 10000 };

/* A reader and a writer at the two ends of a socket, neither of which blocks. */
struct fixture {
    int in, out;
    struct frame_reader *reader;
    struct frame_writer *writer;
    struct frame_message message;
    unsigned n_open; /* descriptors before */
};

static unsigned count_open(void)
{
    unsigned n = 0;
    for (int fd = 0; fd < 4096; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    f->n_open = count_open();
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    f->in = ends[0];
    f->out = ends[1];
    assert_int_equal(frame_reader_new(MAX, &f->reader), 0);
    assert_int_equal(frame_writer_new(1u << 20, &f->writer), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    frame_reader_free(f->reader);
    frame_writer_free(f->writer);
    close(f->in);
    close(f->out);
    assert_int_equal(count_open(), f->n_open);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *text, const int *fds, size_t n_fds)
{
    assert_int_equal(frame_writer_put(f->writer, text, strlen(text), fds, n_fds), 0);
}

static void send_raw(struct fixture *f, const void *bytes, size_t size)
{
    assert_int_equal(send(f->out, bytes, size, MSG_NOSIGNAL), size);
}

/* One sendmsg() with descriptors, as no writer of ours would do it. */
static int send_fds(struct fixture *f, const void *bytes, size_t size, int fd, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    for (unsigned i = 0; i < n_fds; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(fd));
    return sendmsg(f->out, &header, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Receives until there is a message. */
static void expect(struct fixture *f, const char *text, size_t n_fds)
{
    int r;
    while ((r = frame_reader_next(f->reader, &f->message)) == 0)
        assert_int_equal(frame_reader_fill(f->reader, f->in), 1);
    assert_int_equal(r, 1);
    assert_string_equal(f->message.text, text);
    assert_int_equal(f->message.size, strlen(text));
    assert_int_equal(f->message.n_fds, n_fds);
}

static bool same_file(int a, int b)
{
    struct stat in_a, in_b;
    assert_int_equal(fstat(a, &in_a), 0);
    assert_int_equal(fstat(b, &in_b), 0);
    return in_a.st_ino == in_b.st_ino && in_a.st_dev == in_b.st_dev;
}

static void test_messages(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(frame_reader_next(f->reader, &f->message), 0);
    assert_int_equal(frame_reader_fill(f->reader, f->in), -EAGAIN);
    put(f, "{}", NULL, 0);
    put(f, "", NULL, 0);
    put(f, "{\"a\":1}", NULL, 0);
    assert_int_equal(frame_writer_pending(f->writer), 3 + 1 + 8);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    assert_int_equal(frame_writer_pending(f->writer), 0);
    assert_int_equal(frame_reader_pending(f->reader), 0);
    expect(f, "{}", 0);
    assert_int_equal(frame_reader_pending(f->reader), 1 + 8);
    expect(f, "", 0);
    expect(f, "{\"a\":1}", 0);
    assert_int_equal(frame_reader_pending(f->reader), 0);
    assert_int_equal(frame_reader_next(f->reader, &f->message), 0);
    assert_int_equal(frame_reader_fill(f->reader, f->in), -EAGAIN);
    shutdown(f->out, SHUT_WR);
    assert_int_equal(frame_reader_fill(f->reader, f->in), 0);
    assert_int_equal(frame_reader_next(f->reader, &f->message), 0);
}

static void test_parts(void **state)
{
    struct fixture *f = *state;
    const struct frame_text parts[] = {{"{\"a\":", 5}, {"", 0}, {"[1,2]", 5}, {"}", 1}};
    assert_int_equal(frame_writer_put_texts(f->writer, parts, 4, NULL, 0), 0);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, "{\"a\":[1,2]}", 0);
}

static void test_byte_by_byte(void **state)
{
    struct fixture *f = *state;
    static const char text[] = "{\"method\":\"x\"}";
    for (size_t i = 0; i < sizeof(text); i++) {
        assert_int_equal(frame_reader_next(f->reader, &f->message), 0);
        send_raw(f, text + i, 1);
        assert_int_equal(frame_reader_fill(f->reader, f->in), 1);
    }
    expect(f, text, 0);
}

/* A message lives on while more is received, and its text may be changed. */
static void test_message_stays(void **state)
{
    struct fixture *f = *state;
    char first[5001], second[9001];
    memset(first, 'a', 5000);
    memset(second, 'b', 9000);
    first[5000] = second[9000] = '\0';
    put(f, first, NULL, 0);
    put(f, second, NULL, 0);
    put(f, "third", NULL, 0);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, first, 0);
    struct frame_message message = f->message;
    while (frame_reader_fill(f->reader, f->in) == 1)
        ;
    assert_string_equal(message.text, first);
    memset(message.text, 'x', message.size);
    expect(f, second, 0);
    expect(f, "third", 0);
}

static void test_too_long(void **state)
{
    struct fixture *f = *state;
    char text[MAX + 2];
    memset(text, 'x', sizeof(text));
    text[MAX] = '\0';
    send_raw(f, text, MAX + 1);
    expect(f, text, 0);

    text[MAX] = 'x';
    send_raw(f, text, MAX + 1);
    int r;
    while ((r = frame_reader_fill(f->reader, f->in)) == 1)
        ;
    assert_int_equal(r, -EMSGSIZE);
    assert_false(frame_reader_has_room(f->reader));
    assert_int_equal(frame_reader_next(f->reader, &f->message), -EMSGSIZE);
}

/* A full buffer with a message in it is no error: it is read when that was taken. */
static void test_full(void **state)
{
    struct fixture *f = *state;
    char text[MAX + 1];
    memset(text, 'x', MAX);
    text[MAX] = '\0';
    send_raw(f, "first", 6);
    send_raw(f, text, MAX + 1);
    int r;
    while ((r = frame_reader_fill(f->reader, f->in)) == 1)
        ;
    assert_int_equal(r, -ENOBUFS);
    assert_false(frame_reader_has_room(f->reader));
    expect(f, "first", 0);
    assert_true(frame_reader_has_room(f->reader));
    expect(f, text, 0);
}

static void test_fds(void **state)
{
    struct fixture *f = *state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    put(f, "none", NULL, 0);
    put(f, "two", ends, 2);
    put(f, "one", &ends[1], 1);
    put(f, "none again", NULL, 0);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);

    expect(f, "none", 0);
    expect(f, "two", 2);
    int taken = frame_message_take_fd(&f->message, 1);
    assert_true(taken >= 0);
    assert_true(fcntl(taken, F_GETFD) & FD_CLOEXEC);
    assert_true(same_file(taken, ends[1]));
    assert_int_equal(frame_message_take_fd(&f->message, 1), -EBADF); /* taken */
    assert_int_equal(frame_message_take_fd(&f->message, 2), -EBADF);
    assert_int_equal(frame_message_take_fd(&f->message, -1), -EBADF);
    assert_int_equal(frame_message_take_fd(&f->message, INT64_MAX), -EBADF);
    int left = f->message.fds[0];
    expect(f, "one", 1);
    assert_true(same_file(f->message.fds[0], ends[1]));
    /* The one that nobody took was closed, and its number is free, or used again by a later message. */
    assert_true(fcntl(left, F_GETFD) < 0 || left == f->message.fds[0]);
    assert_true(fcntl(taken, F_GETFD) >= 0);
    expect(f, "none again", 0);
    close(taken);
    close(ends[0]);
    close(ends[1]);
}

static void test_fds_most(void **state)
{
    struct fixture *f = *state;
    int fds[FRAME_FDS_MAX + 1];
    for (size_t i = 0; i < FRAME_FDS_MAX + 1; i++)
        fds[i] = f->in;
    assert_int_equal(frame_writer_put(f->writer, "x", 1, fds, FRAME_FDS_MAX + 1), -EINVAL);
    put(f, "x", fds, FRAME_FDS_MAX);
    put(f, "y", fds, FRAME_FDS_MAX);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, "x", FRAME_FDS_MAX);
    expect(f, "y", FRAME_FDS_MAX);
}

/* They belong to the message with the last byte that they came with, wherever the reader's buffer ends. */
static void test_fds_placed(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(send_fds(f, "a\0b", 4, f->in, 1), 0); /* with the last byte of "b" */
    send_raw(f, "c\0d", 3);
    assert_int_equal(send_fds(f, "d", 1, f->in, 2), 0); /* in the middle of "dde" */
    send_raw(f, "e", 2);
    assert_int_equal(send_fds(f, "f\0g", 3, f->in, 3), 0); /* "g" is under way */
    send_raw(f, "", 1);
    expect(f, "a", 0);
    expect(f, "b", 1);
    expect(f, "c", 0);
    expect(f, "dde", 2);
    expect(f, "f", 0);
    expect(f, "g", 3);
}

/* A message longer than what the reader has room for at once keeps its descriptors. */
static void test_fds_of_long(void **state)
{
    struct fixture *f = *state;
    char text[9001];
    memset(text, 'x', 9000);
    text[9000] = '\0';
    put(f, "before", NULL, 0);
    put(f, text, &f->in, 1);
    put(f, "after", NULL, 0);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, "before", 0);
    expect(f, text, 1);
    expect(f, "after", 0);
}

/* What was taken makes room in the buffer, and descriptors keep their place in the stream. */
static void test_fds_of_moved(void **state)
{
    struct fixture *f = *state;
    char first[4001], second[201];
    memset(first, 'a', 4000);
    memset(second, 'b', 200);
    first[4000] = second[200] = '\0';
    put(f, first, NULL, 0);
    put(f, second, &f->in, 1);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, first, 0);
    expect(f, second, 1);
}

/* Too many for one message, the last of them with its end. */
static void test_fds_too_many(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(send_fds(f, "x", 1, f->in, 200), 0);
    assert_int_equal(frame_reader_fill(f->reader, f->in), 1);
    assert_int_equal(send_fds(f, "", 1, f->in, FRAME_FDS_MAX - 200 + 1), 0);
    assert_int_equal(frame_reader_fill(f->reader, f->in), -E2BIG);
}

/* Descriptors without end and no message: given up, with all of them closed (see teardown). */
static void test_fds_flood(void **state)
{
    struct fixture *f = *state;
    int r = 1;
    unsigned sent = 0;
    for (; r == 1 && sent < 4000; sent += 10) {
        assert_int_equal(send_fds(f, "x", 1, f->in, 10), 0);
        r = frame_reader_fill(f->reader, f->in);
    }
    assert_int_equal(r, -E2BIG);
    assert_true(sent <= FRAME_FDS_MAX + 10);
}

/* Many messages with descriptors: held back, none lost. */
static void test_fds_backpressure(void **state)
{
    struct fixture *f = *state;
    unsigned n_sent = 0, n_received = 0;
    while (n_sent < 10 && send_fds(f, "x", 2, f->in, 100) == 0)
        n_sent++;
    assert_true(n_sent > 3);
    int r;
    while ((r = frame_reader_fill(f->reader, f->in)) == 1)
        ;
    assert_int_equal(r, -ENOBUFS);
    assert_false(frame_reader_has_room(f->reader));
    for (; n_received < n_sent; n_received++)
        expect(f, "x", 100);
}

/* The process may open no more: told, not lost silently. */
static void test_fds_no_room(void **state)
{
    struct fixture *f = *state;
    struct rlimit before, low;
    assert_int_equal(send_fds(f, "x", 2, f->in, 50), 0);
    int highest = dup(f->in);
    assert_true(highest >= 0);
    close(highest);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = (rlim_t)highest + 20;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int r = frame_reader_fill(f->reader, f->in);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(r, -EMFILE);
}

/* Sent at once, with the descriptors themselves. */
static void test_send_at_once(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(frame_writer_send(f->writer, f->out, "ab", &f->in, 1), 0);
    assert_int_equal(frame_writer_pending(f->writer), 0);
    expect(f, "ab", 1);
    assert_true(same_file(f->message.fds[0], f->in));
    assert_int_equal(frame_writer_send(f->writer, f->out, "", NULL, 0), 0);
    expect(f, "", 0);
}

/* What is queued goes first. */
static void test_send_behind_others(void **state)
{
    struct fixture *f = *state;
    put(f, "first", NULL, 0);
    assert_int_equal(frame_writer_send(f->writer, f->out, "second", &f->in, 1), 0);
    assert_int_equal(frame_writer_pending(f->writer), sizeof("first") + sizeof("second"));
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    expect(f, "first", 0);
    expect(f, "second", 1);
}

/* More than the socket takes at once: the rest is queued, and the descriptors come once. Then the socket is full, and
 * the next message is queued whole. */
static void test_send_in_pieces(void **state)
{
    struct fixture *f = *state;
    struct frame_reader *reader;
    const size_t size = 900000;
    char *text = malloc(size + 1);
    assert_non_null(text);
    memset(text, 'a', size);
    text[size] = '\0';
    assert_int_equal(frame_reader_new(1u << 20, &reader), 0);
    assert_int_equal(frame_writer_send(f->writer, f->out, text, &f->in, 1), 0);
    assert_in_range(frame_writer_pending(f->writer), 1, size);
    assert_int_equal(frame_writer_send(f->writer, f->out, "next", &f->out, 1), 0);
    int r;
    while ((r = frame_reader_next(reader, &f->message)) == 0) {
        frame_writer_flush(f->writer, f->out);
        assert_int_equal(frame_reader_fill(reader, f->in), 1);
    }
    assert_int_equal(r, 1);
    assert_int_equal(f->message.size, size);
    assert_int_equal(f->message.n_fds, 1);
    assert_true(same_file(f->message.fds[0], f->in));
    frame_message_close_fds(&f->message);
    assert_int_equal(frame_writer_flush(f->writer, f->out), 0);
    while ((r = frame_reader_next(reader, &f->message)) == 0)
        assert_int_equal(frame_reader_fill(reader, f->in), 1);
    assert_string_equal(f->message.text, "next");
    assert_int_equal(f->message.n_fds, 1);
    assert_true(same_file(f->message.fds[0], f->out));
    frame_message_close_fds(&f->message);
    frame_reader_free(reader);
    free(text);
}

/* Refused as by frame_writer_put(), with nothing sent; an error of the socket is met when the queue is sent. */
static void test_send_refused(void **state)
{
    struct fixture *f = *state;
    struct frame_writer *writer;
    const int bad = 1 << 20;
    assert_int_equal(frame_writer_new(10, &writer), 0);
    assert_int_equal(frame_writer_send(writer, f->out, "1234567890", NULL, 0), -ENOBUFS);
    assert_int_equal(frame_writer_send(writer, f->out, "x", &bad, 1), -EBADF);
    assert_int_equal(frame_reader_fill(f->reader, f->in), -EAGAIN);
    shutdown(f->in, SHUT_RDWR);
    assert_int_equal(frame_writer_send(writer, f->out, "x", NULL, 0), 0);
    assert_int_equal(frame_writer_flush(writer, f->out), -EPIPE);
    frame_writer_free(writer);
}

static void test_put_refused(void **state)
{
    struct fixture *f = *state;
    struct frame_writer *writer;
    assert_int_equal(frame_writer_new(10, &writer), 0);
    assert_int_equal(frame_writer_put(writer, "1234567890", 10, NULL, 0), -ENOBUFS);
    assert_int_equal(frame_writer_put(writer, "123456789", 9, NULL, 0), 0);
    assert_int_equal(frame_writer_put(writer, "", 0, NULL, 0), -ENOBUFS);
    const struct frame_text huge[] = {{"x", SIZE_MAX}, {"y", 2}};
    assert_int_equal(frame_writer_put_texts(writer, huge, 2, NULL, 0), -ENOBUFS);
    assert_int_equal(frame_writer_pending(writer), 10);
    assert_int_equal(frame_writer_flush(writer, f->out), 0);
    const int bad[] = {f->in, -1};
    assert_int_equal(frame_writer_put(writer, "x", 1, bad, 2), -EBADF);
    assert_int_equal(frame_writer_pending(writer), 0);
    frame_writer_free(writer);
    expect(f, "123456789", 0);
}

/* A socket that takes little at a time: nothing is lost, nor out of order. */
static void test_partial_writes(void **state)
{
    struct fixture *f = *state;
    int small = 1;
    assert_int_equal(setsockopt(f->out, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    char text[200][64];
    for (unsigned i = 0; i < 200; i++) {
        snprintf(text[i], sizeof(text[i]), "{\"message\":%u,\"padding\":\"................\"}", i);
        put(f, text[i], &f->in, i % 3 == 0);
    }
    unsigned n_again = 0, n_received = 0;
    while (n_received < 200) {
        int r = frame_writer_flush(f->writer, f->out);
        assert_true(r == 0 || r == -EAGAIN);
        n_again += r == -EAGAIN;
        while (n_received < 200) {
            r = frame_reader_next(f->reader, &f->message);
            if (r == 1) {
                assert_string_equal(f->message.text, text[n_received]);
                assert_int_equal(f->message.n_fds, n_received % 3 == 0);
                n_received++;
            } else if (frame_reader_fill(f->reader, f->in) != 1)
                break;
        }
    }
    assert_true(n_again > 0);
    assert_int_equal(frame_writer_pending(f->writer), 0);
}

static void test_large_message(void **state)
{
    struct fixture *f = *state;
    enum { SIZE = 900000 };
    struct frame_reader *reader;
    assert_int_equal(frame_reader_new(SIZE, &reader), 0);
    char *text = malloc(SIZE + 1);
    assert_non_null(text);
    for (size_t i = 0; i < SIZE; i++)
        text[i] = (char)('a' + i % 23);
    text[SIZE] = '\0';
    put(f, text, &f->in, 1);
    int r = 0;
    while ((r = frame_reader_next(reader, &f->message)) == 0) {
        int w = frame_writer_flush(f->writer, f->out);
        assert_true(w == 0 || w == -EAGAIN);
        assert_int_equal(frame_reader_fill(reader, f->in), 1);
    }
    assert_int_equal(r, 1);
    assert_int_equal(f->message.size, SIZE);
    assert_string_equal(f->message.text, text);
    assert_int_equal(f->message.n_fds, 1);
    frame_reader_free(reader);
    free(text);
}

static void test_peer_gone(void **state)
{
    struct fixture *f = *state;
    shutdown(f->in, SHUT_RD);
    put(f, "x", &f->in, 1);
    assert_int_equal(frame_writer_flush(f->writer, f->out), -EPIPE); /* and no signal */
    assert_int_equal(frame_writer_pending(f->writer), 2);
}

static void test_free_nothing(void **state)
{
    (void)state;
    frame_reader_free(NULL);
    frame_writer_free(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_messages),
        TEST(test_parts),
        TEST(test_byte_by_byte),
        TEST(test_message_stays),
        TEST(test_too_long),
        TEST(test_full),
        TEST(test_fds),
        TEST(test_fds_most),
        TEST(test_fds_placed),
        TEST(test_fds_of_long),
        TEST(test_fds_of_moved),
        TEST(test_fds_too_many),
        TEST(test_fds_flood),
        TEST(test_fds_backpressure),
        TEST(test_fds_no_room),
        TEST(test_send_at_once),
        TEST(test_send_behind_others),
        TEST(test_send_in_pieces),
        TEST(test_send_refused),
        TEST(test_put_refused),
        TEST(test_partial_writes),
        TEST(test_large_message),
        TEST(test_peer_gone),
        cmocka_unit_test(test_free_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
