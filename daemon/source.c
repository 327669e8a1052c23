#include "daemon/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What one pread() asks for at most; the kernel's own bound is 2 GiB less a page. */
#define READ_MAX (64u << 20)

static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool identity_equal(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size && a->mtime_ns == b->mtime_ns;
}

static int identity_read(int fd, struct identity *ret, mode_t *ret_mode, struct device_fault *ret_fault)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return device_fault_set(ret_fault, -errno, "fstat", errno, strerror(errno));
    *ret = (struct identity){
        .dev = st.st_dev,
        .ino = st.st_ino,
        .size = (uint64_t)st.st_size,
        .mtime_ns = nanoseconds(st.st_mtim),
        .ctime_ns = nanoseconds(st.st_ctim),
    };
    *ret_mode = st.st_mode;
    return 0;
}

/* The name that the kernel knows the open file by, or NULL. */
static char *path_of_fd(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || path[0] != '/')
        return NULL;
    path[n] = '\0';
    return strdup(path);
}

int source_open_fd(int fd, struct source **ret, struct device_fault *ret_fault)
{
    struct source *source = calloc(1, sizeof(*source));
    if (!source) {
        close(fd);
        return -ENOMEM;
    }
    source->fd = fd;
    mode_t mode = 0;
    int r = identity_read(fd, &source->identity, &mode, ret_fault);
    if (r == 0 && !S_ISREG(mode))
        r = device_fault_set(ret_fault, -EINVAL, "open", EINVAL, "not a regular file");
    int flags = fcntl(fd, F_GETFL);
    if (r == 0 && (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH)))
        r = device_fault_set(ret_fault, -EBADF, "open", EBADF, "not open for reading");
    if (r < 0) {
        source_free(source);
        return r;
    }
    source->readable_by_all = mode & S_IROTH;
    source->path = path_of_fd(fd);
    *ret = source;
    return 0;
}

int source_open_path(const char *path, struct source **ret, struct device_fault *ret_fault)
{
    /* O_NONBLOCK: a FIFO put there must not hold a worker. It means nothing to a regular file. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return device_fault_set(ret_fault, -errno, "open", errno, strerror(errno));
    return source_open_fd(fd, ret, ret_fault);
}

void source_free(struct source *source)
{
    if (!source)
        return;
    close(source->fd);
    free(source->path);
    free(source);
}

int source_read(const struct source *source, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault)
{
    uint8_t *at = dst;
    while (size > 0) {
        ssize_t n = pread(source->fd, at, size < READ_MAX ? size : READ_MAX, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return device_fault_set(ret_fault, -errno, "pread", errno, strerror(errno));
        if (n == 0)
            return device_fault_set(ret_fault, -ESTALE, "pread", 0, "the file is shorter than it was");
        at += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int source_check(const struct source *source, struct device_fault *ret_fault)
{
    struct identity now = {0};
    mode_t mode;
    int r = identity_read(source->fd, &now, &mode, ret_fault);
    if (r < 0)
        return r;
    /* The time of the inode's change as well: the time of modification can be set back. */
    if (!identity_equal(&now, &source->identity) || now.ctime_ns != source->identity.ctime_ns)
        return device_fault_set(ret_fault, -ESTALE, "fstat", 0, "the file's size or times changed");
    return 0;
}
