/* Which file an open file is, and in which state.
 *
 * Any thread; identity_read() may block. */
#pragma once

#include "daemon/device/device.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* If the same unchanged file is opened twice, by any paths, both identities are equal. */
struct identity {
    uint64_t dev;
    uint64_t ino;
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct identity identity_of(const struct stat *st);

/* Also how many names the file has in the file system, and its mode. An errno of fstat(). */
int identity_read(int fd, struct identity *ret, uint64_t *ret_links, mode_t *ret_mode, struct device_fault *ret_fault);

/* The same file with the same size and modification time: its contents are taken to be equal. */
bool identity_equal(const struct identity *a, const struct identity *b);

/* The same file, whatever was done to it since. */
bool identity_same_file(const struct identity *a, const struct identity *b);
