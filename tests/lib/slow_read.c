/* Makes reading files slow, for a daemon that is started with this in LD_PRELOAD: each pread() of a mebibyte or more
 * takes SLOW_READ_MS longer. Then a test can count on a load being under way, on any machine. */
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define LARGE ((size_t)1 << 20)

typedef ssize_t pread_fn(int fd, void *buffer, size_t size, off_t offset);

/* Files are read by the name that 64-bit offsets give the function. */
ssize_t pread64(int fd, void *buffer, size_t size, off_t offset);

ssize_t pread64(int fd, void *buffer, size_t size, off_t offset)
{
    pread_fn *real = (pread_fn *)dlsym(RTLD_NEXT, "pread64");
    const char *ms = getenv("SLOW_READ_MS");

    if (size >= LARGE && ms) {
        long delay = strtol(ms, NULL, 10);
        nanosleep(&(struct timespec){delay / 1000, delay % 1000 * 1000000}, NULL);
    }
    return real(fd, buffer, size, offset);
}
