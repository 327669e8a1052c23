/* Messages on a Unix stream socket: JSON text ended by a NUL byte, with file descriptors beside it.
 *
 * Two objects, one for each direction, that work on blocking sockets (the client library) and on non-blocking ones (the
 * daemon) alike. Both are bounded. Neither is thread safe: one owner at a time. Neither owns the socket. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Descriptors that one message can carry: the kernel's own bound (SCM_MAX_FD). */
#define FRAME_FDS_MAX 253

/* A received message. `text` is NUL-terminated and may be modified; it lives until the next call on its reader. The
 * descriptors live until the next frame_reader_next() or frame_reader_free(): those that the receiver wants to keep it
 * takes with frame_message_take_fd(), the rest are closed. All are close-on-exec. */
struct frame_message {
    char *text;
    size_t size; /* without the NUL */
    int *fds;    /* -1: taken */
    size_t n_fds;
};

/* Gives the descriptor at `index` to the caller, who closes it. -EBADF if there is none or it was taken. */
int frame_message_take_fd(struct frame_message *message, int64_t index);

/* Closes the descriptors that were not taken, before the time comes. */
void frame_message_close_fds(struct frame_message *message);

struct frame_reader;

/* max_size: the longest message, without its NUL. -ENOMEM; -EINVAL if there can be no buffer for that. */
int frame_reader_new(size_t max_size, struct frame_reader **ret);

/* Closes the descriptors that were received and not taken. NULL is fine. */
void frame_reader_free(struct frame_reader *reader);

/* One recvmsg() on `socket`. Returns 1 if bytes came, 0 at the end of the stream, -EAGAIN on a non-blocking socket that
 * has nothing, -ENOBUFS if the buffer is full (read again after frame_reader_next()), -EMSGSIZE if the message under
 * way is too long already, -E2BIG if it has more descriptors than FRAME_FDS_MAX, -EMFILE if descriptors were lost
 * because this process may have no more, -ENOMEM, else a negative errno of recvmsg(). After -EMSGSIZE, -E2BIG and
 * -EMFILE the stream cannot go on. */
int frame_reader_fill(struct frame_reader *reader, int socket);

/* Takes the next whole message from the buffer: returns 1 and sets *ret, or 0 if there is none yet, or -EMSGSIZE, or
 * -ENOMEM. Descriptors belong to the message that holds the last byte they were received with. */
int frame_reader_next(struct frame_reader *reader, struct frame_message *ret);

/* There is room to read into: less than a greatest message waits, and at most FRAME_FDS_MAX descriptors do. */
bool frame_reader_has_room(const struct frame_reader *reader);

/* Bytes received and not taken. */
size_t frame_reader_pending(const struct frame_reader *reader);

/* Descriptors that were received and are not part of a message that was given out. */
size_t frame_reader_fds(const struct frame_reader *reader);

struct frame_writer;

/* max_queued: bytes that may wait to be sent. -ENOMEM. */
int frame_writer_new(size_t max_queued, struct frame_writer **ret);

/* Closes the descriptors of messages that were not sent. NULL is fine. */
void frame_writer_free(struct frame_writer *writer);

/* Queues a message: `text` (size bytes, no NUL inside; the NUL after it is added) and descriptors, which are
 * duplicated, so that the caller keeps its own. -ENOBUFS if max_queued would be exceeded, -EINVAL for too many
 * descriptors, -ENOMEM, -EMFILE, -EBADF; then nothing was queued. */
int frame_writer_put(struct frame_writer *writer, const char *text, size_t size, const int *fds, size_t n_fds);

/* As frame_writer_put() for a message in several pieces, sent as if they were one. `parts` points to `n_parts` pieces.
 */
struct frame_part {
    const char *text;
    size_t size;
};
int frame_writer_put_parts(struct frame_writer *writer, const struct frame_part *parts, size_t n_parts, const int *fds,
                           size_t n_fds);

/* Sends what is queued. Returns 0 when all is sent, -EAGAIN on a non-blocking socket that takes no more now, else a
 * negative errno of sendmsg() (-EPIPE; no signal is raised). */
int frame_writer_flush(struct frame_writer *writer, int socket);

/* Bytes queued and not sent. */
size_t frame_writer_pending(const struct frame_writer *writer);
