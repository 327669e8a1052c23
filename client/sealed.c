#include "client/sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* With these a read of what is mapped gives the same bytes each time, and never SIGBUS. */
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

int sealed_size(int fd, uint64_t *ret)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    *ret = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    return 0;
}

int sealed_map(int fd, uint64_t size, const void **ret)
{
    /* Seals first: what is not sealed may change its size after it was asked for. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS)
        return -EPERM;
    uint64_t has;
    int r = sealed_size(fd, &has);
    if (r < 0)
        return r;
    if (has < size || size > SIZE_MAX)
        return -EMSGSIZE;

    /* Linux before 6.7 takes any shared mapping of a descriptor that could write for one that will, and refuses it. A
     * private mapping that is only read has the very same pages. */
    void *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED && errno == EPERM)
        data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return -errno;
    /* A core of who crashes is not to have the whole model in it: the same bytes are in its file. If the kernel will
     * not have it, it is only a large core. */
    (void)madvise(data, size, MADV_DONTDUMP);
    *ret = data;
    return 0;
}
