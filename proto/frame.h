/* Messages on a Unix stream socket: JSON text ended by a NUL byte, with file descriptors beside it.
 *
 * A reader receives messages, a writer sends them. Both work on blocking sockets (the client library) and on
 * non-blocking ones (the daemon). Both have a limit on the bytes they hold. They are not thread safe: one thread at a
 * time uses one of them. The socket stays the caller's. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most descriptors that one message can carry. It is the kernel's limit (SCM_MAX_FD). */
#define FRAME_FDS_MAX 253

struct frame_reader;

/* A received message. `text` is NUL-terminated and may be modified; it is valid until the next call on its reader. The
 * descriptors are open until the next frame_reader_next() or frame_reader_free(), which close them. To keep one, take
 * it with frame_message_take_fd(). All are close-on-exec. */
struct frame_message {
    char *text;
    size_t size; /* without the NUL */
    int *fds;    /* -1: this one was taken */
    size_t n_fds;
    struct frame_reader *reader;
};

/* Returns the descriptor at `index`; the caller closes it. -EBADF if there is none, or it was taken already. */
int frame_message_take_fd(struct frame_message *message, int64_t index);

/* Closes the descriptors that were not taken, earlier than the reader would. */
void frame_message_close_fds(struct frame_message *message);

/* max_size: the longest message in bytes, without its NUL. -ENOMEM; -EINVAL if max_size is too large for a buffer. */
int frame_reader_new(size_t max_size, struct frame_reader **ret);

/* From now on the reader does not close descriptors itself: it gives them to this function. close() waits for the
 * file's file system, and descriptors come from somebody else. */
void frame_reader_set_drop(struct frame_reader *reader, void (*drop)(void *context, int fd), void *context);

/* Closes the descriptors that were received and not taken. The reader may be NULL. */
void frame_reader_free(struct frame_reader *reader);

/* Calls recvmsg() on `socket` once. Returns 1 if bytes were received; 0 at the end of the stream; or
 *
 *   -EAGAIN: the socket is non-blocking and has nothing to read.
 *   -ENOBUFS: the buffer is full. Call frame_reader_next(), then this again.
 *   -EMSGSIZE: the message that is being received is longer than max_size.
 *   -E2BIG: it has more than FRAME_FDS_MAX descriptors.
 *   -EMFILE: descriptors were lost, because this process may open no more files.
 *   -ENOMEM, or a negative errno of recvmsg().
 *
 * After -EMSGSIZE, -E2BIG and -EMFILE the stream cannot be used any more. */
int frame_reader_fill(struct frame_reader *reader, int socket);

/* Takes the next complete message out of the buffer. Returns 1 and sets *ret; 0 if there is no complete message yet;
 * -EMSGSIZE or -ENOMEM. A descriptor belongs to the message that holds the last byte of the recvmsg() that brought the
 * descriptor. */
int frame_reader_next(struct frame_reader *reader, struct frame_message *ret);

/* True if frame_reader_fill() can read more: at most max_size bytes and at most FRAME_FDS_MAX descriptors wait. */
bool frame_reader_has_room(const struct frame_reader *reader);

/* Bytes that were received and not taken yet. */
size_t frame_reader_pending(const struct frame_reader *reader);

/* Bytes of memory that the buffer and the message taken last have. */
size_t frame_reader_memory(const struct frame_reader *reader);

/* Frees the text of the message taken last, earlier than the next frame_reader_next() would. Its descriptors stay. */
void frame_reader_free_text(struct frame_reader *reader);

/* Descriptors that were received and belong to a message that was not taken yet. */
size_t frame_reader_fds(const struct frame_reader *reader);

struct frame_writer;

/* max_queued: the most bytes that may wait to be sent. -ENOMEM. */
int frame_writer_new(size_t max_queued, struct frame_writer **ret);

/* Closes the descriptors of messages that were not sent. The writer may be NULL. */
void frame_writer_free(struct frame_writer *writer);

/* Queues a message: `text`, which has `size` bytes and no NUL, and descriptors. The NUL at the end is added. The
 * descriptors are duplicated: the caller keeps its own. Errors: -ENOBUFS, max_queued would be exceeded; -EINVAL, too
 * many descriptors; -ENOMEM, -EMFILE, -EBADF. After an error nothing was queued. */
int frame_writer_put(struct frame_writer *writer, const char *text, size_t size, const int *fds, size_t n_fds);

/* The same for a message whose text is in `n_parts` pieces, which are joined. */
struct frame_text {
    const char *text;
    size_t size;
};
int frame_writer_put_texts(struct frame_writer *writer, const struct frame_text *parts, size_t n_parts, const int *fds,
                           size_t n_fds);

/* Sends a message at once if nothing is queued and the socket, which is non-blocking, accepts it. This needs no copy of
 * the text and no duplicates of the descriptors. What was not sent, also because of an error of the socket, is queued:
 * frame_writer_flush() sends it, or meets the error. `text` ends with a NUL. Errors are those of frame_writer_put();
 * after one, nothing of the message is queued, and nothing was sent unless it is -ENOMEM. */
int frame_writer_send(struct frame_writer *writer, int socket, const char *text, const int *fds, size_t n_fds);

/* Sends what is queued. Returns 0 when all was sent; -EAGAIN if the socket is non-blocking and accepts no more now; or
 * a negative errno of sendmsg(). -EPIPE raises no signal. */
int frame_writer_flush(struct frame_writer *writer, int socket);

/* Bytes that are queued and not sent yet. */
size_t frame_writer_pending(const struct frame_writer *writer);
