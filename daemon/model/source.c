#include "daemon/model/source.h"

#include "daemon/format/format.h"
#include "proto/min.h"
#include "proto/model_file.h"
#include "proto/shards.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The most bytes of one pread(). The kernel's own limit is 2 GiB less a page. */
#define READ_MAX (64u << 20)

static int64_t nanoseconds(struct timespec time)
{
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static bool identity_equal(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size && a->mtime_ns == b->mtime_ns;
}

static int file_compare(const void *a, const void *b)
{
    const struct identity *x = *(const struct identity *const *)a, *y = *(const struct identity *const *)b;
    if (x->dev != y->dev)
        return x->dev < y->dev ? -1 : 1;
    return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static void sort_files(const struct source *source, const struct identity **ret)
{
    for (size_t i = 0; i < source->n_files; i++)
        ret[i] = &source->files[i].identity;
    qsort(ret, source->n_files, sizeof(*ret), file_compare);
}

static bool file_same(const struct identity *a, const struct identity *b)
{
    return file_compare(&a, &b) == 0;
}

/* The files of a split model may be given in any order. */
static bool same_files(const struct source *a, const struct source *b,
                       bool (*equal)(const struct identity *, const struct identity *))
{
    const struct identity **files = calloc(2 * a->n_files, sizeof(*files));
    if (!files)
        return false; /* no memory. The caller then loads the model again, or fails for lack of memory */
    sort_files(a, files);
    sort_files(b, files + a->n_files);
    bool same = true;
    for (size_t i = 0; i < a->n_files && same; i++)
        same = equal(files[i], files[a->n_files + i]);
    free(files);
    return same;
}

bool source_equal(const struct source *a, const struct source *b)
{
    if (a->n_files != b->n_files || a->size != b->size || a->n_files == 0)
        return false;
    if (a->n_files == 1)
        return identity_equal(&a->files[0].identity, &b->files[0].identity);
    return same_files(a, b, identity_equal);
}

bool source_same_files(const struct source *a, const struct source *b)
{
    return a->n_files == b->n_files && a->n_files > 0 && same_files(a, b, file_same);
}

bool source_same(const struct source *a, const struct source *b)
{
    bool same = source_equal(a, b);
    for (size_t i = 0; i < a->n_files && same; i++)
        same = a->files[i].identity.ctime_ns == b->files[i].identity.ctime_ns;
    return same;
}

bool source_same_sizes(const struct source *a, const struct source *b)
{
    bool same = a->n_files == b->n_files && a->n_files > 0;
    for (size_t i = 0; i < a->n_files && same; i++)
        same = a->files[i].identity.size == b->files[i].identity.size;
    return same;
}

static int identity_read(int fd, struct identity *ret, uint64_t *ret_links, mode_t *ret_mode,
                         struct device_fault *ret_fault)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return device_fault_set(ret_fault, -errno, "fstat", errno, strerror(errno));
    *ret_links = st.st_nlink;
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

bool source_leads_to(const char *path, int fd)
{
    struct stat named, opened;
    return stat(path, &named) == 0 && fstat(fd, &opened) == 0 && opened.st_nlink > 0 && named.st_dev == opened.st_dev &&
           named.st_ino == opened.st_ino;
}

/* The kernel adds this text to the path of a file that has no name any more, or never had one. */
static const char deleted[] = " (deleted)";

/* Removes the text " (deleted)" from the path, unless it is really part of the file's name. */
static void strip_deleted(char *path, int fd)
{
    const size_t n = strlen(path), length = sizeof(deleted) - 1;
    if (n > length && strcmp(path + n - length, deleted) == 0 && !source_leads_to(path, fd))
        path[n - length] = '\0';
}

char *source_fd_path(int fd)
{
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || path[0] != '/')
        return NULL;
    path[n] = '\0';
    strip_deleted(path, fd);
    return strdup(path);
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
    for (size_t i = 0; i < n; i++)
        source->files[i].fd = fds[i];
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
        source->files[i].path = source_fd_path(source->files[i].fd);
    source->path = source->files[0].path;
    return 0;
}

/* Opens a file only if it is a regular one, because opening a device can have effects. A shard_open_fn. */
static int open_regular(const char *path)
{
    int place = open(path, O_PATH | O_CLOEXEC);
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
static bool has_file(const struct source *source, const struct stat *st)
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
    if (r == 0 && stat(path, &st) == 0 && has_file(*ret, &st)) /* it may also be a folder, or an index of files */
        (*ret)->link = strdup(path);
    if (r == 0 && model_name_of_link(path, name))
        (*ret)->name = strdup(name);
    return r;
}

int source_reopen(const struct source *source, struct source **ret, struct device_fault *ret_fault)
{
    int fds[SOURCE_FILES_MAX];
    for (size_t i = 0; i < source->n_files; i++) {
        fds[i] = fcntl(source->files[i].fd, F_DUPFD_CLOEXEC, 0);
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
        const char *path = source->files[i].path;
        (*ret)->files[i].path = path ? strdup(path) : source_fd_path(fds[i]);
    }
    (*ret)->path = (*ret)->files[0].path;
    (*ret)->link = source->link ? strdup(source->link) : NULL;
    return 0;
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
    source->size = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        struct source_file *file = &source->files[i];
        if (!file_same(&file->identity, &past->identities[i]))
            r = device_fault_set(ret_fault, -ESTALE, "fstat", 0, "it is another file");
        file->identity = past->identities[i];
        if (__builtin_add_overflow(source->size, file->identity.size, &source->size))
            r = device_fault_set(ret_fault, -EOVERFLOW, "fstat", EOVERFLOW, "the files are too large");
        if (r == 0)
            r = copy_text(past->paths[i], &file->path, ret_fault);
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

/* path: the path when the file was opened; NULL: the kernel's present path of the file is used. */
static enum source_look file_look(const struct source_file *file, const char *path)
{
    const struct identity *then = &file->identity;
    char *known = path ? NULL : source_fd_path(file->fd);
    struct stat st;
    const bool there = (path || known) && stat(path ? path : known, &st) == 0 && S_ISREG(st.st_mode);
    free(known);
    if (!there)
        return path ? file_look(file, NULL) : SOURCE_THERE;
    if ((uint64_t)st.st_size != then->size || st.st_dev != then->dev || st.st_ino != then->ino)
        return SOURCE_OTHER;
    const bool untouched = nanoseconds(st.st_mtim) == then->mtime_ns && nanoseconds(st.st_ctim) == then->ctime_ns;
    return untouched ? SOURCE_THERE : SOURCE_TOUCHED;
}

/* Whether the path that the files were opened by leads to another file now. */
static bool link_switched(const struct source *source)
{
    struct stat st;
    return source->link && stat(source->link, &st) == 0 && S_ISREG(st.st_mode) && !has_file(source, &st);
}

enum source_look source_look(const struct source *source)
{
    enum source_look worst = link_switched(source) ? SOURCE_OTHER : SOURCE_THERE;
    for (size_t i = 0; i < source->n_files; i++) {
        const enum source_look look = file_look(&source->files[i], source->files[i].path);
        worst = look > worst ? look : worst;
    }
    return worst;
}

bool source_replaced(const struct source *source)
{
    for (size_t i = 0; i < source->n_files; i++) {
        const struct source_file *file = &source->files[i];
        struct stat st;
        if (file->path && stat(file->path, &st) == 0 &&
            (st.st_dev != file->identity.dev || st.st_ino != file->identity.ino))
            return true;
    }
    return link_switched(source);
}

static bool file_deleted(const struct source_file *file, bool before)
{
    struct stat st;
    if ((file->links == 0 && !before) || fstat(file->fd, &st) < 0 || st.st_nlink > 0)
        return false;
    return !file->path || stat(file->path, &st) < 0;
}

bool source_deleted(const struct source *source, bool before)
{
    bool found = false;
    for (size_t i = 0; i < source->n_files && !found; i++)
        found = file_deleted(&source->files[i], before);
    return found && !link_switched(source);
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
        close(source->files[i].fd);
        free(source->files[i].path);
    }
    free(source->link);
    free(source->name);
    free(source);
}

int source_read(const struct source *source, size_t file, uint64_t offset, void *dst, size_t size,
                struct device_fault *ret_fault)
{
    uint8_t *at = dst;
    while (size > 0) {
        ssize_t n = pread(source->files[file].fd, at, min_u64(size, READ_MAX), (off_t)offset);
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
    if (!end || !source_leads_to(of, source->files[0].fd) ||
        snprintf(path, sizeof(path), "%.*s/%s", (int)(end - of), of, name) >= (int)sizeof(path))
        return -ENOENT;
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
    if (r < 0) {
        free(text);
        return r;
    }
    *ret = text;
    *ret_size = size;
    return 0;
}

static int check_files(const struct source *source, bool untouched, struct device_fault *ret_fault)
{
    for (size_t i = 0; i < source->n_files; i++) {
        const struct identity *then = &source->files[i].identity;
        struct identity now = {0};
        uint64_t links = 0;
        mode_t mode;
        int r = identity_read(source->files[i].fd, &now, &links, &mode, ret_fault);
        if (r < 0)
            return r;
        const bool same_names = links == source->files[i].links;
        if (!identity_equal(&now, then) || (untouched && same_names && now.ctime_ns != then->ctime_ns))
            return device_fault_set(ret_fault, -ESTALE, "fstat", 0, "the file's size or times changed");
    }
    return 0;
}

int source_check(const struct source *source, struct device_fault *ret_fault)
{
    return check_files(source, false, ret_fault);
}

int source_check_untouched(const struct source *source, struct device_fault *ret_fault)
{
    return check_files(source, true, ret_fault);
}

int source_read_headers(const struct source *source, struct gguf **ret, struct gguf_fault *ret_fault, size_t *ret_file)
{
    struct split_file *files = calloc(source->n_files, sizeof(*files));
    if (!files)
        return -ENOMEM;
    for (size_t i = 0; i < source->n_files; i++)
        files[i] = (struct split_file){source->files[i].fd, source->files[i].identity.size};
    int r = format_read(files, source->n_files, ret, ret_fault, ret_file);
    free(files);
    return r;
}
