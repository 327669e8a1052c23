/* The open file of a model, or the open files of a split model: path, identity and contents.
 *
 * The daemon keeps the files open while the model is resident, so that Verify can read them again. It never maps them:
 * if somebody made a mapped file shorter, reading it would raise SIGBUS.
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

/* The most files of one split model. */
#define SOURCE_FILES_MAX SHARDS_MAX

/* Says which file this is, and in which state. If the same unchanged file is opened twice, by any paths, both
 * identities are equal. */
struct identity {
    uint64_t dev;
    uint64_t ino;
    uint64_t size;
    int64_t mtime_ns;
    int64_t ctime_ns;
};

struct source_file {
    int fd;
    char *path; /* that it was opened by, as the kernel told it; NULL: it has none */
    struct identity identity;
    uint64_t links; /* names that the file had in the file system when the identity was read */
};

struct source {
    unsigned references; /* counted by the loop, or by a worker that has the only reference */
    const char *path;    /* of the first file, to show to people; NULL: it has none */
    char *link;          /* the path that source_open_path() got, if it led to one of the files; NULL: none is known */
    char *name;          /* for the model, if that path was a link or a folder; NULL: it is derived from `path` */
    uint64_t size;       /* of all files */
    size_t n_files;      /* 1, or more for a split model; 0: no file, the model was published (manifest.h) */
    struct source_file files[];
};

/* Whether both have the same files, in any order, with equal sizes and modification times. Then the contents are taken
 * to be equal. A source without files is not equal to any, by this and the next three functions. */
bool source_equal(const struct source *a, const struct source *b);

/* Like source_equal(), and the inodes' change times (ctime) are equal as well. A new mode or a new link changes the
 * ctime too. */
bool source_same(const struct source *a, const struct source *b);

/* The same files in whatever order, whatever was done to them since. Without memory to tell: false. */
bool source_same_files(const struct source *a, const struct source *b);

/* As many files, each of the same size. */
bool source_same_sizes(const struct source *a, const struct source *b);

/* Makes a source of open files. Takes over the descriptors, also when it fails. n: 1 to SOURCE_FILES_MAX. -EINVAL: not
 * a regular file; -EBADF: not open for reading; or the errno of the call that the fault names. */
int source_open_fds(const int *fds, size_t n, struct source **ret, struct device_fault *ret_fault);

/* Makes a source without files. The owner sets its size. -ENOMEM. */
int source_none(struct source **ret);

/* Opens an absolute path. If it is the first file of a split model, opens the other files as well; shards_find() finds
 * them. Errors are those of source_open_fds(), shards_find() and open(). -ENOTUNIQ: *ret_files has the files that may
 * be the same one, for the caller to end with shard_paths_free(). */
int source_open_path(const char *path, struct source **ret, struct shard_paths *ret_files,
                     struct device_fault *ret_fault);

/* Makes a new source of the same open files, with their present sizes and times. The paths stay those that the files
 * were opened by, also if the files were renamed since. Errors are those of source_open_fds(). */
int source_reopen(const struct source *source, struct source **ret, struct device_fault *ret_fault);

/* A source as it was before the daemon was restarted. Borrowed. */
struct source_past {
    const struct identity *identities; /* one for each file */
    const char *const *paths;          /* one for each file; each may be NULL */
    const char *link;                  /* may be NULL */
};

/* Makes a source of open files as it was before the daemon was restarted: with the identities and the paths of then, so
 * that what was done to the files since is found as usual. Takes over the descriptors, also when it fails. -ESTALE: a
 * descriptor leads to another file. Other errors are those of source_open_fds(). */
int source_resume(const int *fds, size_t n, const struct source_past *past, struct source **ret,
                  struct device_fault *ret_fault);

/* What the paths of a source's files, and the link, lead to now. */
enum source_look {
    SOURCE_THERE,   /* to these files, not touched; or to nothing, or this is not known */
    SOURCE_TOUCHED, /* to these files, with the same sizes, but they were touched: their contents may have changed */
    SOURCE_OTHER,   /* to other files, or the sizes have changed */
};

enum source_look source_look(const struct source *source);

/* Whether the path of one of the files, or the link, leads to another file now. */
bool source_replaced(const struct source *source);

/* Whether one of the files was deleted: it has no name in the file system any more, and nothing is found at its path.
 * before: whether this was so before; else a file does not count that had no name when its identity was read. */
bool source_deleted(const struct source *source, bool before);

/* Loop. Adds a reference and returns the source. */
struct source *source_ref(struct source *source);

/* Gives up one reference; the last one frees the source. NULL is allowed. */
void source_free(struct source *source);

/* Reads exactly `size` bytes of a file. -ESTALE if the file is now too short; or the errno of pread(). */
int source_read(const struct source *source, size_t file, uint64_t offset, void *dst, size_t size,
                struct device_fault *ret_fault);

/* Reads a file in the folder of the first file, of at most `most` bytes, with the daemon's own rights. The caller frees
 * *ret. -ENOENT: the first file's path is not known, or leads to another file by now; -EFBIG; -ENOMEM; or the errno of
 * opening or reading. */
int source_read_beside(const struct source *source, const char *name, size_t most, char **ret, size_t *ret_size);

/* 0 if all files have the same size and modification time as when they were opened; -ESTALE if not; or the errno of
 * fstat(). */
int source_check(const struct source *source, struct device_fault *ret_fault);

/* Like source_check(), and compares the inodes' change times (ctime) as well: a program can set a modification time
 * back, but not a ctime. A file that got or lost a name gets another ctime although no byte of it was written: whoever
 * replaces a file by renaming another one takes its name. So the ctime does not count if the number of names is another
 * one. Moving a file, or changing its mode, changes its ctime too. A write through a mapping of a file in a tmpfs
 * changes no time; only Verify finds such a change. */
int source_check_untouched(const struct source *source, struct device_fault *ret_fault);

/* The kernel's path of an open file, without symbolic links; if the file has no name any more, its last path. NULL if
 * there is none. The caller frees it. */
char *source_fd_path(int fd);

/* Whether the path leads to the open file. False if the file has no name any more, or never had one. Such a file is
 * open here because a client passed its descriptor; other clients must not reach it through a path in /proc. */
bool source_leads_to(const char *path, int fd);

/* worker. Reads the headers of all files and joins them. Returns what format_read() returns. */
int source_read_headers(const struct source *source, struct gguf **ret, struct gguf_fault *ret_fault, size_t *ret_file);
