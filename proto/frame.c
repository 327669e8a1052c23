#include "proto/frame.h"

#include "proto/array.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Bytes of a reader's first buffer, and the largest buffer that is kept while it is empty. */
#define BUFFER_MIN  4096u
#define BUFFER_KEPT 65536u

/* The most messages that one sendmsg() sends. */
#define IOVS_MAX 64

/* --- reading --- */

/* A descriptor that was received, and whose message was not taken yet. */
struct arrived {
    int fd;
    uint64_t last; /* position in the stream of the last byte of the recvmsg() that brought it */
};

/* The bytes that were received and not taken are buffer[start] to buffer[end - 1]. Positions in the stream count from
 * the first byte that was ever received. */
struct frame_reader {
    size_t max_size;
    char *buffer;
    size_t capacity;
    size_t start;
    size_t end;
    size_t scanned;    /* there is no NUL between start and this index */
    uint64_t position; /* of buffer[0] in the stream */

    /* One recvmsg() brings at most FRAME_FDS_MAX, and while more than that wait, recvmsg() is not called. */
    struct arrived arrived[2 * FRAME_FDS_MAX];
    size_t n_arrived;

    /* The message that frame_reader_next() returned last. */
    char *text;
    size_t text_size;
    int fds[FRAME_FDS_MAX];
    size_t n_fds;

    void (*drop)(void *context, int fd); /* NULL: close() */
    void *drop_context;
};

int frame_message_take_fd(struct frame_message *message, int64_t index)
{
    if (index < 0 || (uint64_t)index >= message->n_fds || message->fds[index] < 0)
        return -EBADF;
    int fd = message->fds[index];
    message->fds[index] = -1;
    return fd;
}

int frame_reader_new(size_t max_size, struct frame_reader **ret)
{
    if (max_size > SIZE_MAX / 4)
        return -EINVAL;
    struct frame_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return -ENOMEM;
    reader->max_size = max_size;
    *ret = reader;
    return 0;
}

void frame_reader_set_drop(struct frame_reader *reader, void (*drop)(void *context, int fd), void *context)
{
    reader->drop = drop;
    reader->drop_context = context;
}

static void drop(const struct frame_reader *reader, int fd)
{
    if (reader->drop)
        reader->drop(reader->drop_context, fd);
    else
        close(fd);
}

static void close_untaken(const struct frame_reader *reader, int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (fds[i] >= 0)
            drop(reader, fds[i]);
        fds[i] = -1;
    }
}

void frame_message_close_fds(struct frame_message *message)
{
    close_untaken(message->reader, message->fds, message->n_fds);
}

void frame_reader_free_text(struct frame_reader *reader)
{
    free(reader->text);
    reader->text = NULL;
    reader->text_size = 0;
}

size_t frame_reader_memory(const struct frame_reader *reader)
{
    return reader->capacity + reader->text_size;
}

/* Frees the message that frame_reader_next() returned last. */
static void frame_reader_release(struct frame_reader *reader)
{
    close_untaken(reader, reader->fds, reader->n_fds);
    reader->n_fds = 0;
    frame_reader_free_text(reader);
}

void frame_reader_free(struct frame_reader *reader)
{
    if (!reader)
        return;
    frame_reader_release(reader);
    for (size_t i = 0; i < reader->n_arrived; i++)
        drop(reader, reader->arrived[i].fd);
    free(reader->buffer);
    free(reader);
}

/* The NUL at the end of the first complete message; NULL if there is none. */
static const char *frame_reader_find(struct frame_reader *reader)
{
    const char *end = NULL;
    if (reader->end > reader->scanned)
        end = memchr(reader->buffer + reader->scanned, '\0', reader->end - reader->scanned);
    reader->scanned = end ? (size_t)(end - reader->buffer) : reader->end;
    return end;
}

size_t frame_reader_fds(const struct frame_reader *reader)
{
    return reader->n_arrived;
}

bool frame_reader_has_room(const struct frame_reader *reader)
{
    return reader->end - reader->start <= reader->max_size && reader->n_arrived <= FRAME_FDS_MAX;
}

size_t frame_reader_pending(const struct frame_reader *reader)
{
    return reader->end - reader->start;
}

/* Makes room for at least one more byte. */
static int frame_reader_grow(struct frame_reader *reader)
{
    if (reader->end < reader->capacity)
        return 0;
    if (reader->start > 0) {
        memmove(reader->buffer, reader->buffer + reader->start, reader->end - reader->start);
        reader->position += reader->start;
        reader->scanned -= reader->start;
        reader->end -= reader->start;
        reader->start = 0;
        return 0;
    }
    return array_grow(&reader->buffer, &reader->capacity, reader->end + 1, 1, BUFFER_MIN, reader->max_size + 1);
}

/* Stores the descriptors of a recvmsg() that brought `n` bytes. Those bytes are at the end of the buffer already. */
static int frame_reader_arrive(struct frame_reader *reader, struct msghdr *header, size_t n)
{
    /* The descriptors belong to the message that holds the last of these bytes. It begins behind the last NUL before
     * that byte. */
    uint64_t begins = 0;
    if (n > 0) {
        const char *end = memrchr(reader->buffer + reader->start, '\0', reader->end - 1 - reader->start);
        begins = reader->position + (end ? (size_t)(end - reader->buffer) + 1 : reader->start);
    }
    size_t of_message = 0;
    for (size_t i = 0; i < reader->n_arrived; i++)
        of_message += reader->arrived[i].last >= begins;

    int r = header->msg_flags & MSG_CTRUNC ? -EMFILE : 0; /* `control` has room for the most that the kernel sends */
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n_fds; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
            if (r < 0 || n == 0 || of_message == FRAME_FDS_MAX) {
                r = r < 0 ? r : -E2BIG;
                drop(reader, fd);
                continue;
            }
            of_message++;
            reader->arrived[reader->n_arrived++] =
                (struct arrived){.fd = fd, .last = reader->position + reader->end - 1};
        }
    }
    return r;
}

int frame_reader_fill(struct frame_reader *reader, int socket)
{
    if (!frame_reader_has_room(reader))
        return frame_reader_find(reader) ? -ENOBUFS : -EMSGSIZE;
    int r = frame_reader_grow(reader);
    if (r < 0)
        return r;

    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = reader->buffer + reader->end, .iov_len = reader->capacity - reader->end};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n;
    do
        n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    reader->end += (size_t)n;
    if (header.msg_controllen > 0 || header.msg_flags & MSG_CTRUNC)
        r = frame_reader_arrive(reader, &header, (size_t)n);
    return r < 0 ? r : n > 0 ? 1 : 0;
}

/* Moves the descriptors of the message that ends at position `end` to reader->fds. */
static void frame_reader_take_fds(struct frame_reader *reader, uint64_t end)
{
    size_t n = 0;
    while (n < reader->n_arrived && reader->arrived[n].last <= end) {
        reader->fds[n] = reader->arrived[n].fd;
        n++;
    }
    reader->n_fds = n;
    reader->n_arrived -= n;
    memmove(reader->arrived, reader->arrived + n, reader->n_arrived * sizeof(reader->arrived[0]));
}

/* The buffer is empty: starts it anew, and frees it if a long message made it large. */
static void frame_reader_rest(struct frame_reader *reader)
{
    reader->position += reader->end;
    reader->start = reader->end = reader->scanned = 0;
    if (reader->capacity > BUFFER_KEPT) {
        free(reader->buffer);
        reader->buffer = NULL;
        reader->capacity = 0;
    }
}

int frame_reader_next(struct frame_reader *reader, struct frame_message *ret)
{
    frame_reader_release(reader);
    const char *end = frame_reader_find(reader);
    if (!end)
        return reader->end - reader->start > reader->max_size ? -EMSGSIZE : 0;

    /* A copy, because the buffer may move when more is received, and the message must stay in its place. */
    const char *begin = reader->buffer + reader->start;
    size_t size = (size_t)(end - begin);
    reader->text = malloc(size + 1);
    if (!reader->text)
        return -ENOMEM;
    reader->text_size = size + 1;
    memcpy(reader->text, begin, size + 1);
    frame_reader_take_fds(reader, reader->position + (size_t)(end - reader->buffer));
    reader->start = reader->scanned = (size_t)(end - reader->buffer) + 1;
    if (reader->start == reader->end)
        frame_reader_rest(reader);
    *ret = (struct frame_message){
        .text = reader->text, .size = size, .fds = reader->fds, .n_fds = reader->n_fds, .reader = reader};
    return 1;
}

/* --- writing --- */

/* A message that waits to be sent. Its descriptors are sent together with its first byte. */
struct outgoing {
    STAILQ_ENTRY(outgoing) link;
    int *fds;
    size_t n_fds;
    size_t size; /* with the NUL */
    size_t sent;
    char text[];
};

struct frame_writer {
    size_t max_queued;
    size_t queued;
    STAILQ_HEAD(, outgoing) queue;
};

int frame_writer_new(size_t max_queued, struct frame_writer **ret)
{
    struct frame_writer *writer = calloc(1, sizeof(*writer));
    if (!writer)
        return -ENOMEM;
    writer->max_queued = max_queued;
    STAILQ_INIT(&writer->queue);
    *ret = writer;
    return 0;
}

static void outgoing_close_fds(struct outgoing *message)
{
    for (size_t i = 0; i < message->n_fds; i++)
        close(message->fds[i]);
    message->n_fds = 0;
    free(message->fds);
    message->fds = NULL;
}

static void outgoing_free(struct outgoing *message)
{
    outgoing_close_fds(message);
    free(message);
}

void frame_writer_free(struct frame_writer *writer)
{
    if (!writer)
        return;
    struct outgoing *message;
    while ((message = STAILQ_FIRST(&writer->queue))) {
        STAILQ_REMOVE_HEAD(&writer->queue, link);
        outgoing_free(message);
    }
    free(writer);
}

static int outgoing_duplicate_fds(struct outgoing *message, const int *fds, size_t n_fds)
{
    if (n_fds == 0)
        return 0;
    message->fds = malloc(n_fds * sizeof(*fds));
    if (!message->fds)
        return -ENOMEM;
    for (size_t i = 0; i < n_fds; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            return -errno;
        message->fds[message->n_fds++] = fd;
    }
    return 0;
}

int frame_writer_put_texts(struct frame_writer *writer, const struct frame_text *parts, size_t n_parts, const int *fds,
                           size_t n_fds)
{
    if (n_fds > FRAME_FDS_MAX)
        return -EINVAL;
    size_t size = 1;
    for (size_t i = 0; i < n_parts; i++)
        if (__builtin_add_overflow(size, parts[i].size, &size))
            return -ENOBUFS;
    if (size > writer->max_queued - writer->queued)
        return -ENOBUFS;

    struct outgoing *message = malloc(sizeof(*message) + size);
    if (!message)
        return -ENOMEM;
    *message = (struct outgoing){.size = size};
    int r = outgoing_duplicate_fds(message, fds, n_fds);
    if (r < 0) {
        outgoing_free(message);
        return r;
    }
    char *at = message->text;
    for (size_t i = 0; i < n_parts; i++) {
        memcpy(at, parts[i].text, parts[i].size);
        at += parts[i].size;
    }
    *at = '\0';
    STAILQ_INSERT_TAIL(&writer->queue, message, link);
    writer->queued += size;
    return 0;
}

int frame_writer_put(struct frame_writer *writer, const char *text, size_t size, const int *fds, size_t n_fds)
{
    const struct frame_text part = {.text = text, .size = size};
    return frame_writer_put_texts(writer, &part, 1, fds, n_fds);
}

/* Collects what one sendmsg() sends. A message with descriptors is sent alone, so that the receiver cannot count them
 * to the message before or after it. Messages without descriptors are sent together. Returns how many there are in iov.
 */
static size_t frame_writer_collect(const struct frame_writer *writer, struct iovec iov[static IOVS_MAX])
{
    size_t n = 0;
    struct outgoing *message;
    STAILQ_FOREACH(message, &writer->queue, link)
    {
        if (n == IOVS_MAX || (n > 0 && message->n_fds > 0))
            break;
        iov[n++] = (struct iovec){.iov_base = message->text + message->sent, .iov_len = message->size - message->sent};
        if (message->n_fds > 0)
            break;
    }
    return n;
}

static void frame_writer_sent(struct frame_writer *writer, size_t n)
{
    writer->queued -= n;
    outgoing_close_fds(STAILQ_FIRST(&writer->queue));
    while (n > 0) {
        struct outgoing *message = STAILQ_FIRST(&writer->queue);
        size_t left = message->size - message->sent;
        if (n < left) {
            message->sent += n;
            return;
        }
        n -= left;
        STAILQ_REMOVE_HEAD(&writer->queue, link);
        outgoing_free(message);
    }
}

/* One sendmsg(), which sends the descriptors with its first byte. Returns the bytes that were sent, or a negative
 * errno. */
static ssize_t send_some(int socket, struct iovec *iov, size_t n_iov, const int *fds, size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = n_iov};
    if (n_fds > 0) {
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        memset(&control, 0, header.msg_controllen);
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(socket, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int frame_writer_send(struct frame_writer *writer, int socket, const char *text, const int *fds, size_t n_fds)
{
    size_t size = strlen(text);
    if (!STAILQ_EMPTY(&writer->queue) || size >= writer->max_queued || n_fds > FRAME_FDS_MAX)
        return frame_writer_put(writer, text, size, fds, n_fds);
    struct iovec iov = {.iov_base = (char *)text, .iov_len = size + 1};
    ssize_t n = send_some(socket, &iov, 1, fds, n_fds);
    if (n < 0)
        return frame_writer_put(writer, text, size, fds, n_fds);
    size_t sent = (size_t)n;
    if (sent > size)
        return 0;
    return frame_writer_put(writer, text + sent, size - sent, NULL, 0); /* the descriptors went with the first byte */
}

int frame_writer_flush(struct frame_writer *writer, int socket)
{
    const struct outgoing *first;
    while ((first = STAILQ_FIRST(&writer->queue))) {
        struct iovec iov[IOVS_MAX];
        size_t n_iov = frame_writer_collect(writer, iov);
        ssize_t n = send_some(socket, iov, n_iov, first->fds, first->n_fds);
        if (n < 0)
            return (int)n;
        frame_writer_sent(writer, (size_t)n);
    }
    return 0;
}

size_t frame_writer_pending(const struct frame_writer *writer)
{
    return writer->queued;
}
