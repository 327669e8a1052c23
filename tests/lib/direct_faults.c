/* Has reads past the page cache fail, in a daemon that is started with this in LD_PRELOAD. They are changed before the
 * kernel gets them, so it is the kernel that answers. DIRECT_FAULT says what happens:
 *
 *     error     each is refused
 *     error:N   each Nth is refused
 *     short     each reads one page only
 *     end       each ends as if the file ended there: before its last page, or at once if it has only one
 *
 * While there is a file DIRECT_GATE, none begins. DIRECT_COUNT, a file, has a byte for each that began. FAULTY_FROM:
 * the disk is faulty from this byte of any file on, for pread(), which fails with EIO. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

ssize_t pread64(int fd, void *buffer, size_t size, off_t offset);

static void change(struct io_uring_sqe *entry, const char *fault)
{
    static unsigned n; /* one thread only submits reads */
    n++;
    if (strcmp(fault, "short") == 0)
        entry->len = entry->len < PAGE ? entry->len : PAGE;
    else if (strcmp(fault, "end") == 0 && entry->len > PAGE)
        entry->len -= PAGE;
    else if (strcmp(fault, "end") == 0)
        entry->off = (__u64)1 << 50; /* behind the end of every file */
    else if (strcmp(fault, "error") == 0 || (strncmp(fault, "error:", 6) == 0 && n % (unsigned)atoi(fault + 6) == 0))
        entry->fd = -1;
}

static void count(void)
{
    const char *path = getenv("DIRECT_COUNT");
    const int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (fd < 0)
        return;
    if (write(fd, "", 1) < 0)
        abort();
    close(fd);
}

int io_uring_submit(struct io_uring *ring)
{
    int (*real)(struct io_uring *) = dlsym(RTLD_NEXT, "io_uring_submit");
    const char *fault = getenv("DIRECT_FAULT"), *gate = getenv("DIRECT_GATE");
    for (unsigned i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++) {
        struct io_uring_sqe *entry = &ring->sq.sqes[i & *ring->sq.kring_mask];
        if (entry->user_data == 0 || entry->opcode != IORING_OP_READ)
            continue;
        while (gate && access(gate, F_OK) == 0)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        count();
        if (fault)
            change(entry, fault);
    }
    return real(ring);
}

ssize_t pread64(int fd, void *buffer, size_t size, off_t offset)
{
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread64");
    const char *from = getenv("FAULTY_FROM");
    if (from && offset + (off_t)size > strtoll(from, NULL, 10)) {
        errno = EIO;
        return -1;
    }
    return real(fd, buffer, size, offset);
}
