#include "daemon/model/source.h"

#include "daemon/base/closer.h"
#include "daemon/format/format.h"
#include "proto/min.h"
#include "proto/model_file.h"
#include "proto/shards.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/* The most bytes of one pread(). The kernel's own limit is 2 GiB less a page. */
#define READ_MAX (64u << 20)

/* In linux/magic.h only since Linux 6.1. */
#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

static bool is_named(const struct stat *named, int fd)
{
    struct stat opened;
    return fstat(fd, &opened) == 0 && opened.st_nlink > 0 && named->st_dev == opened.st_dev &&
           named->st_ino == opened.st_ino;
}

bool source_is_at(const char *path, int fd)
{
    struct stat named;
    return lstat(path, &named) == 0 && is_named(&named, fd);
}

/* The same, but the path may also be a link. */
static bool leads_to(const char *path, int fd)
{
    struct stat named;
    return stat(path, &named) == 0 && is_named(&named, fd);
}

/* The kernel adds this text to the path of a file that has no name any more, or never had one. */
static const char deleted[] = " (deleted)";

/* Removes the text " (deleted)" from the path, unless it is really part of the file's name. Returns whether it did. */
static bool strip_deleted(char *path, int fd)
{
    const size_t n = strlen(path), length = sizeof(deleted) - 1;
    if (n <= length || strcmp(path + n - length, deleted) != 0 || source_is_at(path, fd))
        return false;
    path[n - length] = '\0';
    return true;
}

/* ret_named: whether the file still has the name at the path's end. */
static char *fd_path(int fd, bool *ret_named)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    *ret_named = false;
    if (n <= 0 || path[0] != '/')
        return NULL;
    path[n] = '\0';
    *ret_named = !strip_deleted(path, fd);
    return strdup(path);
}

char *source_fd_path(int fd)
{
    bool unused;
    return fd_path(fd, &unused);
}

/* The number of the mount that the file was opened in. 0: not known. */
static uint64_t mount_of(int fd)
{
    struct statx st;
    return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &st) == 0 && (st.stx_mask & STATX_MNT_ID)
               ? st.stx_mnt_id
               : 0;
}

/* Sets the file's path and place. */
static void find_place(struct source_file *file)
{
    bool named;
    file->path = fd_path(file->fd, &named);
    file->seen = file->path && source_is_at(file->path, file->fd);
    file->mount = file->path && named ? mount_of(file->fd) : 0;
}

bool source_seen(const struct source *source)
{
    bool seen = source->n_files > 0;
    for (size_t i = 0; i < source->n_files; i++)
        seen = seen && source->files[i].seen;
    return seen;
}

static int file_check(struct source_file *file, struct device_fault *ret_fault)
{
    mode_t mode = 0;
    int r = identity_read(file->fd, &file->identity, &file->links, &mode, ret_fault);
    if (r < 0)
        return r;
    if (!S_ISREG(mode))
        return device_fault_set(ret_fault, -EINVAL, "open", EINVAL, "not a regular file");
    int flags = fcntl(file->fd, F_GETFL);
    if (flags < 0 || (flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH))
        return device_fault_set(ret_fault, -EBADF, "open", EBADF, "not open for reading");
    return 0;
}

/* source_open_fds(), without the paths. */
static int open_files(const int *fds, size_t n, struct source **ret, struct device_fault *ret_fault)
{
    struct source *source = calloc(1, sizeof(*source) + n * sizeof(source->files[0]));
    if (!source) {
        for (size_t i = 0; i < n; i++)
            close(fds[i]);
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    }
    source->references = 1;
    source->n_files = n;
    for (size_t i = 0; i < n; i++) {
        source->files[i].fd = fds[i];
        source->files[i].given = i;
    }
    for (size_t i = 0; i < n; i++) {
        int r = file_check(&source->files[i], ret_fault);
        if (r == 0 && __builtin_add_overflow(source->size, source->files[i].identity.size, &source->size))
            r = device_fault_set(ret_fault, -EOVERFLOW, "fstat", EOVERFLOW, "the files are too large");
        if (r < 0) {
            source_free(source);
            return r;
        }
    }
    *ret = source;
    return 0;
}

int source_open_fds(const int *fds, size_t n, struct source **ret, struct device_fault *ret_fault)
{
    int r = open_files(fds, n, ret, ret_fault);
    if (r < 0)
        return r;
    struct source *source = *ret;
    for (size_t i = 0; i < n; i++)
        find_place(&source->files[i]);
    source->path = source->files[0].path;
    return 0;
}

/* Opens a path without reading what is there. No link in /proc is followed that leads to what a process has open: these
 * paths mean another thing to the daemon than to who names them. */
static int open_place(const char *path)
{
    const struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    const int place = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
    if (place < 0 && (errno == ENOSYS || errno == EPERM)) /* what cannot be had here */
        return open(path, O_PATH | O_CLOEXEC);
    return place;
}

/* Opens a file only if it is a regular one, because opening a device can have effects. A shard_open_fn. */
static int open_regular(const char *path)
{
    int place = open_place(path);
    if (place < 0)
        return -errno;
    struct stat st;
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", place);
    int r = 0;
    if (fstat(place, &st) < 0)
        r = -errno;
    else if (!S_ISREG(st.st_mode))
        r = -EINVAL;
    else if ((r = open(link, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) < 0)
        r = -errno; /* EWOULDBLOCK: a process has a lease (fcntl) on the file; a blocking open() could wait 45 s */
    close(place);
    return r;
}

static int open_failed(int error, struct device_fault *ret_fault)
{
    const char *text = error == -EINVAL    ? "not a regular file"
                       : error == -EBADMSG ? "the folder's index is not valid"
                       : error == -E2BIG   ? "the model is split into too many files"
                                           : strerror(-error);
    return device_fault_set(ret_fault, error, "open", -error, text);
}

/* Whether the file is one of the source's. */
bool source_has_file(const struct source *source, const struct stat *st)
{
    for (size_t i = 0; i < source->n_files; i++) {
        const struct identity *file = &source->files[i].identity;
        if (file->dev == st->st_dev && file->ino == st->st_ino)
            return true;
    }
    return false;
}

int source_none(struct source **ret)
{
    struct source *source = calloc(1, sizeof(*source));
    if (!source)
        return -ENOMEM;
    source->references = 1;
    *ret = source;
    return 0;
}

int source_open_path(const char *path, struct source **ret, struct shard_paths *ret_files,
                     struct device_fault *ret_fault)
{
    struct shard_paths shards;
    int r = shards_find(path, false, open_regular, &shards);
    int *fds = r == 0 ? calloc(shards.n, sizeof(*fds)) : NULL;
    size_t n = 0;
    if (r == 0 && !fds)
        r = -ENOMEM;
    for (; n < shards.n && r == 0; n++) {
        fds[n] = open_regular(shards.paths[n]);
        if (fds[n] < 0) {
            r = fds[n];
            break;
        }
    }
    if (r == -ENOTUNIQ)
        *ret_files = shards;
    else
        shard_paths_free(&shards);
    if (r < 0) {
        while (n > 0)
            close(fds[--n]);
        free(fds);
        return open_failed(r, ret_fault);
    }
    r = source_open_fds(fds, n, ret, ret_fault);
    free(fds);
    struct stat st;
    char name[MODEL_NAME_MAX + 1];
    if (r == 0 && stat(path, &st) == 0 &&
        source_has_file(*ret, &st)) /* it may also be a folder, or an index of files */
        (*ret)->link = strdup(path);
    if (r == 0 && model_name_of_link(path, name))
        (*ret)->name = strdup(name);
    return r;
}

/* order NULL: the order stays. */
static int reopen(const struct source *source, const size_t *order, struct source **ret, struct device_fault *ret_fault)
{
    int fds[SOURCE_FILES_MAX];
    for (size_t i = 0; i < source->n_files; i++) {
        fds[i] = fcntl(source->files[order ? order[i] : i].fd, F_DUPFD_CLOEXEC, 0);
        if (fds[i] < 0) {
            const int error = errno;
            while (i > 0)
                close(fds[--i]);
            return device_fault_set(ret_fault, -error, "fcntl", error, strerror(error));
        }
    }
    int r = open_files(fds, source->n_files, ret, ret_fault);
    if (r < 0)
        return r;
    for (size_t i = 0; i < source->n_files; i++) {
        const struct source_file *then = &source->files[order ? order[i] : i];
        struct source_file *file = &(*ret)->files[i];
        file->path = then->path ? strdup(then->path) : NULL;
        file->seen = then->seen && file->path;
        file->mount = file->path ? then->mount : 0;
        file->given = then->given;
    }
    (*ret)->path = (*ret)->files[0].path;
    (*ret)->link = source->link ? strdup(source->link) : NULL;
    (*ret)->closer = source->closer;
    (*ret)->uid = source->uid;
    (*ret)->of_user = source->of_user;
    return 0;
}

int source_reopen(const struct source *source, struct source **ret, struct device_fault *ret_fault)
{
    return reopen(source, NULL, ret, ret_fault);
}

int source_reorder(const struct source *source, const size_t *order, struct source **ret,
                   struct device_fault *ret_fault)
{
    return reopen(source, order, ret, ret_fault);
}

/* Sets *ret to a copy, or to NULL without a text. -ENOMEM. */
static int copy_text(const char *text, char **ret, struct device_fault *ret_fault)
{
    *ret = text ? strdup(text) : NULL;
    return text && !*ret ? device_fault_set(ret_fault, -ENOMEM, "strdup", ENOMEM, strerror(ENOMEM)) : 0;
}

int source_resume(const int *fds, size_t n, const struct source_past *past, struct source **ret,
                  struct device_fault *ret_fault)
{
    struct source *source = NULL;
    int r = open_files(fds, n, &source, ret_fault);
    if (r < 0)
        return r;
    assert(source);
    source->size = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        struct source_file *file = &source->files[i];
        if (!identity_same_file(&file->identity, &past->identities[i]))
            r = device_fault_set(ret_fault, -ESTALE, "fstat", 0, "it is another file");
        file->identity = past->identities[i];
        if (__builtin_add_overflow(source->size, file->identity.size, &source->size))
            r = device_fault_set(ret_fault, -EOVERFLOW, "fstat", EOVERFLOW, "the files are too large");
        if (r == 0)
            r = copy_text(past->paths[i], &file->path, ret_fault);
        file->seen = file->path && past->seen[i];
        file->mount = file->path && past->named[i] ? mount_of(file->fd) : 0;
    }
    source->path = source->files[0].path;
    if (r == 0)
        r = copy_text(past->link, &source->link, ret_fault);
    if (r < 0) {
        source_free(source);
        return r;
    }
    *ret = source;
    return 0;
}

struct source *source_ref(struct source *source)
{
    source->references++;
    return source;
}

void source_free(struct source *source)
{
    if (!source || --source->references > 0)
        return;
    for (size_t i = 0; i < source->n_files; i++) {
        closer_close(source->closer, source->uid, source->files[i].fd);
        free(source->files[i].path);
    }
    free(source->link);
    free(source->name);
    free(source);
}

void source_discard(struct source *source)
{
    if (source)
        source->closer = NULL;
    worker_file_begin();
    source_free(source);
    worker_file_end();
}

void source_set_owner(struct source *source, struct closer *closer, uid_t uid)
{
    source->closer = closer;
    source->uid = uid;
    worker_file_begin();
    for (size_t i = 0; i < source->n_files; i++) {
        struct statfs system;
        source->of_user |= fstatfs(source->files[i].fd, &system) == 0 && system.f_type == FUSE_SUPER_MAGIC;
    }
    worker_file_end();
}

struct work_reads source_reads(const struct source *source, uid_t uid)
{
    if (source->n_files == 0)
        return (struct work_reads){.uid = uid};
    const struct identity *first = &source->files[0].identity;
    return (struct work_reads){.uid = uid, .dev = first->dev, .ino = first->ino};
}

int source_read(const struct source *source, size_t file, uint64_t offset, void *dst, size_t size,
                struct device_fault *ret_fault)
{
    uint8_t *at = dst;
    while (size > 0) {
        worker_file_begin();
        ssize_t n = pread(source->files[file].fd, at, min_u64(size, READ_MAX), (off_t)offset);
        worker_file_end();
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

int source_read_beside(const struct source *source, const char *name, size_t most, char **ret, size_t *ret_size)
{
    const char *of = source->link ? source->link : source->path, *end = of ? strrchr(of, '/') : NULL;
    char path[PATH_MAX];
    struct stat st;
    if (!end || !leads_to(of, source->files[0].fd) ||
        snprintf(path, sizeof(path), "%.*s/%s", (int)(end - of), of, name) >= (int)sizeof(path))
        return -ENOENT;
    worker_file_begin();
    const int fd = open_regular(path);
    int r = fd < 0 ? fd : fstat(fd, &st) < 0 ? -errno : (size_t)st.st_size > most ? -EFBIG : 0;
    const size_t size = r == 0 ? (size_t)st.st_size : 0;
    char *text = r == 0 ? malloc(size ? size : 1) : NULL;
    if (r == 0 && !text)
        r = -ENOMEM;
    if (r == 0 && pread(fd, text, size, 0) != (ssize_t)size)
        r = -EIO;
    if (fd >= 0)
        close(fd);
    worker_file_end();
    if (r < 0) {
        free(text);
        return r;
    }
    *ret = text;
    *ret_size = size;
    return 0;
}

int source_read_headers(const struct source *source, struct model_header **ret, struct header_fault *ret_fault,
                        size_t *ret_file)
{
    struct header_file *files = calloc(source->n_files, sizeof(*files));
    if (!files)
        return -ENOMEM;
    for (size_t i = 0; i < source->n_files; i++)
        files[i] = (struct header_file){source->files[i].fd, source->files[i].identity.size};
    worker_file_begin();
    int r = format_read(files, source->n_files, ret, ret_fault, ret_file);
    worker_file_end();
    free(files);
    return r;
}
