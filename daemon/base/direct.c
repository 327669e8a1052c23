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

/* The most reads under way. docs/performance.md has what fewer and more do. */
#define DEPTH 32u

/* The most bytes of one of the kernel's reads; it takes a 32-bit number, and may read fewer. */
#define READ_MAX (1u << 30)

/* When the kernel has no memory for further reads, the thread tries again after so long. */
#define AGAIN_MS 1

struct direct {
    struct io_uring ring; /* the thread's */
    pthread_t thread;
    int wake;                 /* an eventfd: something was submitted, or it is to end */
    struct direct_read *last; /* atomic: submitted last; `next` leads to the one before it */
    bool ends;                /* atomic */

    /* The thread's. */
    struct direct_read *first; /* not begun yet, in order */
    struct direct_read **end;
    unsigned under_way;
};

static void begin_read(struct direct *direct, struct direct_read *read)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&direct->ring); /* there is one for each read under way */
    const size_t left = read->size - read->got;
    io_uring_prep_read(entry, read->fd, (uint8_t *)read->dst + read->got, left < READ_MAX ? (unsigned)left : READ_MAX,
                       read->offset + read->got);
    io_uring_sqe_set_data(entry, read);
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

static void begin_more(struct direct *direct)
{
    while (direct->first && direct->under_way < DEPTH) {
        struct direct_read *read = direct->first;
        direct->first = read->next;
        if (!direct->first)
            direct->end = &direct->first;
        direct->under_way++;
        begin_read(direct, read);
    }
}

/* A read may end early: where the file ends, or anywhere. */
static void ended(struct direct *direct, struct direct_read *read, int result)
{
    if (result > 0) {
        read->got += (size_t)result;
        if (read->got < read->size && read->got % DIRECT_ALIGNMENT == 0) {
            begin_read(direct, read);
            return;
        }
    }
    read->error = result < 0 ? result : 0;
    direct->under_way--;
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
            struct direct_read *read = io_uring_cqe_get_data(entry);
            const int result = entry->res;
            io_uring_cqe_seen(&direct->ring, entry);
            ended(direct, read, result);
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
    read->got = 0;
    read->error = 0;
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
