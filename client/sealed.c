#include "client/sealed.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* With these seals the mapped bytes never change, and reading them never raises SIGBUS. */
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)

/* Writes the size in bytes. Checks the seals first: without them, another process could still change the size after the
 * check. */
static int sealed_size(int fd, uint64_t *ret)
{
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS)
        return -EPERM;
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    *ret = status.st_size > 0 ? (uint64_t)status.st_size : 0;
    return 0;
}

static int map(int fd, uint64_t size, const void **ret)
{
    /* Linux before 6.7 refuses every shared mapping of a write-sealed memfd whose descriptor is open for writing, even
     * a read-only mapping. A private mapping that is only read shares the same pages. */
    void *data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED && errno == EPERM)
        data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return -errno;
    /* Keep the model out of core dumps: they would be very large, and the bytes are in the model's file. If this fails,
     * nothing else is lost. */
    (void)madvise(data, size, MADV_DONTDUMP);
    *ret = data;
    return 0;
}

int sealed_map(int fd, uint64_t size, const void **ret)
{
    uint64_t has = 0;
    int r = sealed_size(fd, &has);
    if (r < 0)
        return r;
    return has < size || size > SIZE_MAX ? -EMSGSIZE : map(fd, size, ret);
}

int sealed_map_whole(int fd, const void **ret, uint64_t *ret_size)
{
    int r = sealed_size(fd, ret_size);
    if (r < 0)
        return r;
    return *ret_size == 0 || *ret_size > SIZE_MAX ? -EMSGSIZE : map(fd, *ret_size, ret);
}
