#include "daemon/base/direct.h"

#include <errno.h>

#ifdef HAVE_LIBURING

#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A read is cut into pieces of so many bytes, and so many of them are under way at most. docs/performance.md has what
 * fewer and more do. */
#define PIECE ((size_t)256 << 10)
#define DEPTH 32u

/* When the kernel has no memory for further reads, the thread tries again after so long. */
#define AGAIN_MS 1

/* One of the kernel's reads. */
struct piece {
    struct direct_read *read;
    size_t begin; /* within the read */
    size_t size;
    size_t got;
};

struct direct {
    struct io_uring ring; /* the thread's */
    pthread_t thread;
    int wake;                 /* an eventfd: something was submitted, or it is to end */
    struct direct_read *last; /* atomic: submitted last; `next` leads to the one before it */
    bool ends;                /* atomic */

    /* The thread's. */
    struct direct_read *first; /* of which pieces are still to be begun, in order */
    struct direct_read **end;
    struct piece pieces[DEPTH];
    struct piece *free[DEPTH];
    unsigned n_free;
};

/* There is an entry for each piece. */
static void begin_piece(struct direct *direct, struct piece *piece)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&direct->ring);
    const struct direct_read *read = piece->read;
    const size_t at = piece->begin + piece->got;
    io_uring_prep_read(entry, read->fd, (uint8_t *)read->dst + at, (unsigned)(piece->size - piece->got),
                       read->offset + at);
    io_uring_sqe_set_data(entry, piece);
}

/* Appends what was submitted since to the reads that wait, in order. */
static void take(struct direct *direct)
{
    struct direct_read *read = __atomic_exchange_n(&direct->last, NULL, __ATOMIC_ACQUIRE), *first = NULL;
    struct direct_read **end = direct->end;
    if (read)
        direct->end = &read->next;
    while (read) {
        struct direct_read *before = read->next;
        read->next = first;
        first = read;
        read = before;
    }
    *end = first;
}

/* Begins no more pieces of the first read. */
static void leave_first(struct direct *direct)
{
    direct->first = direct->first->next;
    if (!direct->first)
        direct->end = &direct->first;
}

static void begin_more(struct direct *direct)
{
    while (direct->first && direct->n_free > 0) {
        struct direct_read *read = direct->first;
        struct piece *piece = direct->free[--direct->n_free];
        const size_t left = read->size - read->begun;
        *piece = (struct piece){.read = read, .begin = read->begun, .size = left < PIECE ? left : PIECE};
        read->begun += piece->size;
        read->pieces++;
        begin_piece(direct, piece);
        if (read->begun == read->size)
            leave_first(direct);
    }
}

/* The piece has ended before its end. What is behind it does not count, and no more of it is begun. */
static void cut_short(struct direct *direct, const struct piece *piece, int error)
{
    struct direct_read *read = piece->read;
    const size_t end = piece->begin + piece->got;
    if (read == direct->first)
        leave_first(direct);
    if (end < read->got) {
        read->got = end;
        read->error = error;
    }
}

/* A piece may end early: where the file ends, or anywhere. */
static void ended(struct direct *direct, struct piece *piece, int result)
{
    struct direct_read *read = piece->read;
    if (result > 0) {
        piece->got += (size_t)result;
        if (piece->got < piece->size && piece->got % DIRECT_ALIGNMENT == 0) {
            begin_piece(direct, piece);
            return;
        }
    }
    if (piece->got < piece->size)
        cut_short(direct, piece, result < 0 ? result : 0);
    direct->free[direct->n_free++] = piece;
    if (--read->pieces == 0 && read != direct->first)
        read->done(read);
}

/* Waits in poll(), and not in the ring: with anything under way there, an idle daemon would count as waiting for a
 * disk. */
static void wait_for_more(struct direct *direct, int timeout_ms)
{
    struct pollfd fds[] = {{.fd = direct->ring.ring_fd, .events = POLLIN}, {.fd = direct->wake, .events = POLLIN}};
    uint64_t woken;
    if (poll(fds, 2, timeout_ms) > 0 && fds[1].revents && read(direct->wake, &woken, sizeof(woken)) < 0)
        return; /* somebody else cannot have read it */
}

static void *direct_run(void *context)
{
    struct direct *direct = context;
    while (!__atomic_load_n(&direct->ends, __ATOMIC_ACQUIRE)) {
        take(direct);
        begin_more(direct);
        const int r = io_uring_submit(&direct->ring);
        struct io_uring_cqe *entry;
        wait_for_more(direct, r < 0 ? AGAIN_MS : -1);
        while (io_uring_peek_cqe(&direct->ring, &entry) == 0) {
            struct piece *piece = io_uring_cqe_get_data(entry);
            const int result = entry->res;
            io_uring_cqe_seen(&direct->ring, entry);
            ended(direct, piece, result);
        }
    }
    return NULL;
}

/* Signals are the loop's. */
static int start_thread(struct direct *direct)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = -pthread_create(&direct->thread, NULL, direct_run, direct);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

int direct_new(struct direct **ret)
{
    struct direct *direct = calloc(1, sizeof(*direct));
    if (!direct)
        return -ENOMEM;
    direct->end = &direct->first;
    while (direct->n_free < DEPTH) {
        direct->free[direct->n_free] = &direct->pieces[direct->n_free];
        direct->n_free++;
    }
    direct->wake = eventfd(0, EFD_CLOEXEC);
    int r = direct->wake < 0 ? -errno : io_uring_queue_init(DEPTH, &direct->ring, 0);
    if (r == 0) {
        r = start_thread(direct);
        if (r < 0)
            io_uring_queue_exit(&direct->ring);
    }
    if (r < 0) {
        if (direct->wake >= 0)
            close(direct->wake);
        free(direct);
        return r;
    }
    *ret = direct;
    return 0;
}

static void wake(struct direct *direct)
{
    const uint64_t one = 1;
    ssize_t unused = write(direct->wake, &one, sizeof(one)); /* it fails only at a count that is never reached */
    (void)unused;
}

void direct_free(struct direct *direct)
{
    if (!direct)
        return;
    __atomic_store_n(&direct->ends, true, __ATOMIC_RELEASE);
    wake(direct);
    pthread_join(direct->thread, NULL);
    io_uring_queue_exit(&direct->ring);
    close(direct->wake);
    free(direct);
}

void direct_submit(struct direct *direct, struct direct_read *read)
{
    read->got = read->size; /* until a piece ends before its end */
    read->error = 0;
    read->begun = read->pieces = 0;
    struct direct_read *before = __atomic_load_n(&direct->last, __ATOMIC_RELAXED);
    do
        read->next = before; /* after the exchange the read may be done, and is not looked at any more */
    while (!__atomic_compare_exchange_n(&direct->last, &before, read, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED));
    if (!before) /* else whoever submitted that one wakes the thread */
        wake(direct);
}

#else

int direct_new(struct direct **ret)
{
    (void)ret;
    return -ENOSYS;
}

void direct_free(struct direct *direct)
{
    (void)direct;
}

void direct_submit(struct direct *direct, struct direct_read *read)
{
    (void)direct;
    read->got = 0;
    read->error = -ENOSYS;
    read->done(read);
}

#endif
