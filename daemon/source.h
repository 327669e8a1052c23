/* The open file of a model: what it is called, which file it is, and its bytes.
 *
 * The daemon keeps it open while the model is resident, so that Verify can read it again. Never mapped: a file that is
 * cut short meanwhile would be a SIGBUS.
 *
 * Blocking; meant for a worker thread. Reading is safe from several threads at once. */
#pragma once

#include "daemon/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Which file this is, and in which state: two opens of the same unchanged file give the same identity, by any path. */
struct identity {
    uint64_t dev;
    uint64_t ino;
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

/* Same file, same contents as far as its size and time of modification tell. */
bool identity_equal(const struct identity *a, const struct identity *b);

struct source {
    int fd;
    char *path; /* for people; NULL where it has none */
    struct identity identity;
    bool readable_by_all; /* everyone may read it */
};

/* Takes over `fd`, also when it fails. -EINVAL: not a regular file; -EBADF: not open for reading; or an errno of the
 * call that the fault names. */
int source_open_fd(int fd, struct source **ret, struct device_fault *ret_fault);

/* Opens an absolute path. As above, and the errno of open(). */
int source_open_path(const char *path, struct source **ret, struct device_fault *ret_fault);

/* NULL is fine. */
void source_free(struct source *source);

/* Reads exactly `size` bytes. -ESTALE if the file has fewer by now; or the errno of pread(). */
int source_read(const struct source *source, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault);

/* 0 if the file is still what it was when it was opened, -ESTALE if not, or an errno of fstat(). */
int source_check(const struct source *source, struct device_fault *ret_fault);
