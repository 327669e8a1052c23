/* Has calloc() fail, in a daemon that is started with this in LD_PRELOAD: each call for exactly as many bytes as the
 * file NO_MEMORY says, in decimal, while there is one. So a test picks the one that it means by its size. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

typedef void *calloc_fn(size_t n, size_t size);

static size_t unlucky(void)
{
    char text[32] = "";
    const char *path = getenv("NO_MEMORY");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    return n > 0 ? strtoul(text, NULL, 10) : 0;
}

void *calloc(size_t n, size_t size)
{
    int error = errno;
    const size_t bytes = unlucky();
    if (bytes > 0 && n * size == bytes) {
        errno = ENOMEM;
        return NULL;
    }
    errno = error;
    return ((calloc_fn *)dlsym(RTLD_NEXT, "calloc"))(n, size);
}
