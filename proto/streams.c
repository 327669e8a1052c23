#include "proto/streams.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int streams_open(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
            continue;
        /* open() returns the lowest free number, which is `fd`. */
        if (open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return -errno;
    }
    return 0;
}
