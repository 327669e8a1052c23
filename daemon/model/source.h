/* The open file of a model, or files of a split one: what it is called, which files they are, and their bytes.
 *
 * The daemon keeps them open while the model is resident, so that Verify can read them again. Never mapped: a file that
 * is cut short meanwhile would be a SIGBUS.
 *
 * Blocking; meant for a worker thread. Reading is safe from several threads at once. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/gguf/gguf.h"
#include "proto/shards.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Files that one model may be split into. */
#define SOURCE_FILES_MAX SHARDS_MAX

/* Which file this is, and in which state: two opens of the same unchanged file give the same identity, by any path. */
struct identity {
    uint64_t dev;
    uint64_t ino;
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct source_file {
    int fd;
    struct identity identity;
};

struct source {
    unsigned references; /* the loop's, and those of workers who have the only one */
    char *path;          /* of the first file, for people; NULL where it has none */
    uint64_t size;       /* of all files */
    size_t n_files;      /* 1 but for split models */
    struct source_file files[];
};

/* The same files in whatever order, with the same contents as far as sizes and times of modification tell. */
bool source_equal(const struct source *a, const struct source *b);

/* And nothing was done to them in between that moves the time of the inode's last change, as changing a mode or making
 * a link does as well. */
bool source_same(const struct source *a, const struct source *b);

/* The same files in whatever order, whatever was done to them since. Without memory to tell: false. */
bool source_same_files(const struct source *a, const struct source *b);

/* As many files, each of the same size. */
bool source_same_sizes(const struct source *a, const struct source *b);

/* Takes over the descriptors, also when it fails. n is 1 to SOURCE_FILES_MAX. -EINVAL: not a regular file; -EBADF: not
 * open for reading; or an errno of the call that the fault names. */
int source_open_fds(const int *fds, size_t n, struct source **ret, struct device_fault *ret_fault);

/* Opens an absolute path; if that is the first file of a split model, the others as well, as shards_find() finds them.
 * As above, and the errors of that and of open(). */
int source_open_path(const char *path, struct source **ret, struct device_fault *ret_fault);

/* The files that are open already, as they are now. Errors are those of source_open_fds(). */
int source_reopen(const struct source *source, struct source **ret, struct device_fault *ret_fault);

/* What the paths of files lead to that were opened earlier. */
enum source_look {
    SOURCE_THERE,   /* to these files, untouched; or to nothing, or nobody knows */
    SOURCE_TOUCHED, /* to these files, of the same sizes, but they were touched: what is in them may have changed */
    SOURCE_OTHER,   /* to other files, or to files of other sizes */
};

enum source_look source_look(const struct source *source);

/* Loop. Keeps it for one more; returns it. */
struct source *source_ref(struct source *source);

/* Gives one reference up, and with the last one the source. NULL is fine. */
void source_free(struct source *source);

/* Reads exactly `size` bytes of a file. -ESTALE if it has fewer by now; or the errno of pread(). */
int source_read(const struct source *source, size_t file, uint64_t offset, void *dst, size_t size,
                struct device_fault *ret_fault);

/* 0 if all files still have the size and the time of modification that they had when they were opened, -ESTALE if not,
 * or an errno of fstat(). */
int source_check(const struct source *source, struct device_fault *ret_fault);

/* As source_check(), and nothing touched them meanwhile: the time of modification can be set back, that of the inode's
 * last change cannot. Moving or linking a file touches it as well. A change through a mapping of a file in a tmpfs
 * moves no time at all; only Verify finds it. */
int source_check_untouched(const struct source *source, struct device_fault *ret_fault);

/* The path that the kernel knows an open file by, without links, or knew it by; NULL if there is none. For free(). */
char *source_fd_path(int fd);

/* The path still leads to the open file. It does not to one that has no name any more, or never had: such a file is
 * open here because somebody passed its descriptor, and is nobody else's to be found through /proc. */
bool source_leads_to(const char *path, int fd);

/* worker. Reads the headers of all files, and joins them: split_read() says what it returns. */
int source_read_headers(const struct source *source, struct gguf **ret, struct gguf_fault *ret_fault, size_t *ret_file);
