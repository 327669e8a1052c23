/* Writes to a descriptor until all is written. */
#pragma once

#include <errno.h>
#include <stddef.h>
#include <unistd.h>

/* Writes all bytes, at the descriptor's position. Waits if it has to. Returns 0, or the negative errno of write(). */
static inline int write_all(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size > 0) {
        const ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}
