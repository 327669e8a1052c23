#include "daemon/model/identity.h"

#include "daemon/base/worker.h"

#include <errno.h>
#include <string.h>

static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

struct identity identity_of(const struct stat *st)
{
    return (struct identity){
        .dev = st->st_dev,
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .mtime_ns = nanoseconds(st->st_mtim),
        .ctime_ns = nanoseconds(st->st_ctim),
    };
}

int identity_read(int fd, struct identity *ret, uint64_t *ret_links, mode_t *ret_mode, struct device_fault *ret_fault)
{
    struct stat st;
    worker_file_begin();
    const int r = fstat(fd, &st) < 0 ? -errno : 0;
    worker_file_end();
    if (r < 0)
        return device_fault_set(ret_fault, r, "fstat", -r, strerror(-r));
    *ret = identity_of(&st);
    *ret_links = st.st_nlink;
    *ret_mode = st.st_mode;
    return 0;
}

bool identity_equal(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size && a->mtime_ns == b->mtime_ns;
}

bool identity_same_file(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino;
}
