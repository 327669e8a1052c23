/* The open file of a model, or the open files of a split model: path, identity and contents.
 * source_compare.h tells whether two sources are of the same files, source_look.h what became of the files since,
 * source_sort.h in which order they stand.
 *
 * The daemon keeps the files open while the model is resident, so that Verify can read them again. It never maps them:
 * if somebody made a mapped file shorter, reading it would raise SIGBUS.
 *
 * Blocking; meant for a worker thread. Reading is safe from several threads at once. */
#pragma once

#include "daemon/base/worker.h"
#include "daemon/device/device.h"
#include "daemon/header/model_header.h"
#include "daemon/model/identity.h"
#include "proto/shards.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The most files of one split model. */
#define SOURCE_FILES_MAX SHARDS_MAX

struct closer;

/* A file has a place if its path means the same to others. Two processes may be in different mount namespaces, and see
 * different files at one path. So a path is a place only together with one of these:
 *   seen    the daemon's own file system had this file at the path when it was opened
 *   mount   the file was opened in this mount, as the kernel numbers mounts, and had a name there. A mount keeps its
 *           number while a file in it is open. This is how a file is known in a folder that the daemon cannot search
 * A file that was deleted, or that never had a name, has no place, although the kernel tells a path. */
struct source_file {
    int fd;
    char *path; /* that it was opened by, as the kernel told it; NULL: it has none */
    bool seen;
    uint64_t mount; /* 0: none */
    struct identity identity;
    uint64_t links; /* names that the file had in the file system when the identity was read */
    size_t given;   /* which one it was, from 0 on, when the files were given */
};

struct source {
    /* Who has it: its descriptors are closed by the closer. NULL: by source_free() itself, on a worker. */
    struct closer *closer;
    uid_t uid;
    bool of_user;        /* a file of it is in a file system that a process serves (FUSE): it may never answer */
    unsigned references; /* counted by the loop, or by a worker that has the only reference */
    const char *path;    /* of the first file, to show to people; NULL: it has none */
    char *link;          /* the path that source_open_path() got, if it led to one of the files; NULL: none is known */
    char *name;          /* for the model, if that path was a link or a folder; NULL: it is derived from `path` */
    uint64_t size;       /* of all files */
    size_t n_files;      /* 1, or more for a split model; 0: no file, the model was published (manifest.h) */
    struct source_file files[];
};

/* Makes a source of open files. Takes over the descriptors, also when it fails. n: 1 to SOURCE_FILES_MAX. -EINVAL: not
 * a regular file; -EBADF: not open for reading; or the errno of the call that the fault names. */
int source_open_fds(const int *fds, size_t n, struct source **ret, struct device_fault *ret_fault);

/* Whether the file is one of the source's. */
bool source_has_file(const struct source *source, const struct stat *st);

/* Makes a source without files. The owner sets its size. -ENOMEM. */
int source_none(struct source **ret);

/* Opens an absolute path, with this process's rights, but not through a link of /proc to what a process has open. If it
 * is one of several files of a model, opens the other files as well, if shards_find()
 * finds them. Errors are those of source_open_fds(), shards_find() and open(). -ENOTUNIQ: *ret_files has the files that
 * may be the same one, for the caller to end with shard_paths_free(). */
int source_open_path(const char *path, struct source **ret, struct shard_paths *ret_files,
                     struct device_fault *ret_fault);

/* Makes a new source of the same open files, that the same user has, with their present sizes and times. The paths stay
 * those that the files were opened by, also if the files were renamed since. Errors are those of source_open_fds(). */
int source_reopen(const struct source *source, struct source **ret, struct device_fault *ret_fault);

/* source_reopen(), with the files in another order: its file i is file order[i] of the source. */
int source_reorder(const struct source *source, const size_t *order, struct source **ret,
                   struct device_fault *ret_fault);

/* Whether all files were seen at their paths when they were opened: source_look.h can tell what is there now. */
bool source_seen(const struct source *source);

/* A source as it was before the daemon was restarted. Borrowed. */
struct source_past {
    const struct identity *identities; /* one for each file */
    const char *const *paths;          /* one for each file; each may be NULL */
    const bool *seen;                  /* one for each file */
    const bool *named;                 /* one for each file: it had a name in its mount */
    const char *link;                  /* may be NULL */
};

/* Makes a source of open files as it was before the daemon was restarted: with the identities and the paths of then, so
 * that what was done to the files since is found as usual. Takes over the descriptors, also when it fails. -ESTALE: a
 * descriptor leads to another file. Other errors are those of source_open_fds(). */
int source_resume(const int *fds, size_t n, const struct source_past *past, struct source **ret,
                  struct device_fault *ret_fault);

/* Loop. Adds a reference and returns the source. */
struct source *source_ref(struct source *source);

/* worker. Notes who has the source, and sets of_user. */
void source_set_owner(struct source *source, struct closer *closer, uid_t uid);

/* Gives up one reference; the last one frees the source. NULL is allowed. On a worker, source_discard(): it closes the
 * descriptors itself. */
void source_free(struct source *source);
void source_discard(struct source *source);

/* Whose the source is, and which file it is, or its first one, for worker_queue_reading(). */
struct work_reads source_reads(const struct source *source, uid_t uid);

/* Reads exactly `size` bytes of a file. -ESTALE if the file is now too short; or the errno of pread(). */
int source_read(const struct source *source, size_t file, uint64_t offset, void *dst, size_t size,
                struct device_fault *ret_fault);

/* Reads a file in the folder of the first file, of at most `most` bytes, with the daemon's own rights. The caller frees
 * *ret. -ENOENT: the first file's path is not known, or leads to another file by now; -EFBIG; -ENOMEM; or the errno of
 * opening or reading. */
int source_read_beside(const struct source *source, const char *name, size_t most, char **ret, size_t *ret_size);

/* The kernel's path of an open file, without symbolic links; if the file has no name any more, its last path. NULL if
 * there is none. The caller frees it. */
char *source_fd_path(int fd);

/* Whether the path is one of the open file's names: it is the file itself, and no link to it. False if the file has no
 * name any more, or never had one. */
bool source_is_at(const char *path, int fd);

/* worker. Reads the headers of all files and joins them. Returns what format_read() returns. */
int source_read_headers(const struct source *source, struct model_header **ret, struct header_fault *ret_fault,
                        size_t *ret_file);
