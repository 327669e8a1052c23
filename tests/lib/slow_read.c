/* Makes reading files slow, for a daemon that is started with this in LD_PRELOAD. Then a test can count on a load, or a
 * verification, being under way, on any machine. Each pread() of SLOW_READ_LEAST bytes, 1048576 by default, or more
 *
 *     takes SLOW_READ_MS longer,
 *     and does not begin while there is a file SLOW_READ_GATE.
 *
 * Nothing is read past the page cache then: the daemon finds no io_uring. */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LEAST ((size_t)1 << 20)

typedef ssize_t pread_fn(int fd, void *buffer, size_t size, off_t offset);

/* Files are read by the name that 64-bit offsets give the function. */
ssize_t pread64(int fd, void *buffer, size_t size, off_t offset);

static void wait_ms(long ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

ssize_t pread64(int fd, void *buffer, size_t size, off_t offset)
{
    pread_fn *real = (pread_fn *)dlsym(RTLD_NEXT, "pread64");
    const char *ms = getenv("SLOW_READ_MS");
    const char *gate = getenv("SLOW_READ_GATE");
    const char *text = getenv("SLOW_READ_LEAST");
    const size_t least = text ? (size_t)strtoul(text, NULL, 10) : LEAST;

    if (size >= least && ms)
        wait_ms(strtol(ms, NULL, 10));
    while (size >= least && gate && access(gate, F_OK) == 0)
        wait_ms(1);
    return real(fd, buffer, size, offset);
}

/* liburing's. */
int io_uring_queue_init(unsigned entries, void *ring, unsigned flags);

int io_uring_queue_init(unsigned entries, void *ring, unsigned flags)
{
    (void)entries;
    (void)ring;
    (void)flags;
    return -ENOSYS;
}
