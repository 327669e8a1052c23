#include "proto/shards.h"

#include "proto/folder.h"
#include "proto/gguf_value.h"
#include "proto/min.h"

#include <ctype.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- what a file says --- */

/* Read at once. */
#define WINDOW  (64u << 10)
#define KEY_MAX 32u /* of those that are looked for */

struct peek {
    int fd;
    uint64_t size, pos;
    uint64_t window; /* position of the bytes below */
    size_t filled;
    int error; /* of pread() */
    uint8_t bytes[WINDOW];
};

/* The next bytes, at most a page, and steps over them. NULL: the file has no more, or reading failed. */
static const uint8_t *take(struct peek *peek, size_t n)
{
    if (n > peek->size - peek->pos || peek->error)
        return NULL;
    if (peek->pos < peek->window || peek->pos + n > peek->window + peek->filled) {
        ssize_t got;
        do
            got = pread(peek->fd, peek->bytes, sizeof(peek->bytes), (off_t)peek->pos);
        while (got < 0 && errno == EINTR);
        peek->error = got < 0 ? -errno : 0;
        peek->window = peek->pos;
        peek->filled = got < 0 ? 0 : (size_t)got;
        if (n > peek->filled)
            return NULL;
    }
    const uint8_t *at = peek->bytes + (peek->pos - peek->window);
    peek->pos += n;
    return at;
}

static bool take_number(struct peek *peek, size_t size, uint64_t *ret)
{
    const uint8_t *at = take(peek, size);
    uint64_t value = 0;
    if (!at)
        return false;
    memcpy(&value, at, size);
    *ret = le64toh(value);
    return true;
}

static bool skip(struct peek *peek, uint64_t n)
{
    if (n > peek->size - peek->pos)
        return false;
    peek->pos += n;
    return true;
}

static bool skip_value(struct peek *peek, uint64_t type, unsigned depth)
{
    uint64_t size = gguf_scalar_bytes(type), element, count;
    if (size > 0)
        return skip(peek, size);
    if (type == GGUF_STRING)
        return take_number(peek, 8, &size) && skip(peek, size);
    if (type != GGUF_ARRAY || depth == GGUF_NESTING_MAX || !take_number(peek, 4, &element) ||
        !take_number(peek, 8, &count))
        return false;
    const size_t each = gguf_scalar_bytes(element);
    if (each > 0)
        return count <= (peek->size - peek->pos) / each && skip(peek, count * each);
    bool good = element == GGUF_STRING || element == GGUF_ARRAY;
    for (uint64_t i = 0; i < count && good; i++)
        good = skip_value(peek, element, depth + 1);
    return good;
}

/* A number that is not negative, of any integer type. */
static bool take_integer(struct peek *peek, uint64_t type, uint64_t *ret)
{
    const size_t size = gguf_scalar_bytes(type);
    uint64_t value;
    if (size == 0 || type == GGUF_F32 || type == GGUF_F64 || !take_number(peek, size, &value))
        return false;
    const bool is_signed = type == GGUF_I8 || type == GGUF_I16 || type == GGUF_I32 || type == GGUF_I64;
    if (is_signed && value >> (8 * size - 1) != 0)
        return false;
    *ret = value;
    return true;
}

/* Reads an entry, and what it says if it is one of ours. False: no more can be read. */
static bool read_entry(struct peek *peek, struct shard_place *place, bool *ret_number)
{
    uint64_t size, type;
    char key[KEY_MAX + 1] = "";
    if (!take_number(peek, 8, &size))
        return false;
    if (size <= KEY_MAX) {
        const uint8_t *at = take(peek, (size_t)size);
        if (!at)
            return false;
        memcpy(key, at, (size_t)size);
    } else if (!skip(peek, size))
        return false;
    if (!take_number(peek, 4, &type))
        return false;
    if (strcmp(key, "split.no") == 0)
        return *ret_number = take_integer(peek, type, &place->number);
    if (strcmp(key, "split.count") == 0)
        return take_integer(peek, type, &place->count);
    if (strcmp(key, "split.tensors.count") == 0)
        return take_integer(peek, type, &place->tensors);
    return skip_value(peek, type, 0);
}

int shard_peek(int fd, struct shard_place *ret)
{
    struct peek *peek = calloc(1, sizeof(*peek));
    struct stat status;
    struct shard_place place = {.tensors = UINT64_MAX};
    if (!peek || fstat(fd, &status) < 0) {
        int error = peek ? -errno : -ENOMEM;
        free(peek);
        return error;
    }
    peek->fd = fd;
    peek->size = status.st_size > 0 ? min_u64((uint64_t)status.st_size, GGUF_HEADER_MAX) : 0;
    uint64_t version, n_tensors, n;
    bool number = false;
    const uint8_t *magic = take(peek, 4);
    place.gguf = magic && memcmp(magic, "GGUF", 4) == 0;
    if (place.gguf && take_number(peek, 4, &version) && (version == 2 || version == 3) &&
        take_number(peek, 8, &n_tensors) && take_number(peek, 8, &n) && n <= GGUF_KV_MAX)
        for (uint64_t i = 0; i < n && !(number && place.count > 0 && place.tensors != UINT64_MAX); i++)
            if (!read_entry(peek, &place, &number))
                break;
    place.split = number && place.count != 1;
    int error = peek->error;
    free(peek);
    if (error == 0)
        *ret = place;
    return error;
}

int shard_open_regular(const char *path)
{
    struct stat status;
    /* O_NONBLOCK: opening a named pipe would wait until another process opens its other end. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        return fd;
    close(fd);
    return -EINVAL;
}

/* --- where the others are --- */

/* The numbers of a path's last part, "...-00001-of-00003...". */
struct numbered {
    size_t digits; /* where the first number begins in the path */
    int width;     /* its digits */
    uint64_t number, total;
};

static const char *number_read(const char *at, uint64_t *ret, int *ret_width)
{
    uint64_t n = 0;
    int width = 0;
    for (; isdigit((unsigned char)*at) && width < 10; at++, width++)
        n = 10 * n + (uint64_t)(*at - '0');
    *ret = n;
    *ret_width = width;
    return at;
}

static bool path_numbers(const char *path, struct numbered *ret)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *of = NULL;
    for (const char *next = base; (next = strstr(next, "-of-")); next++)
        of = next;
    if (!of)
        return false;
    const char *digits = of;
    while (digits > base && isdigit((unsigned char)digits[-1]))
        digits--;
    int unused;
    struct numbered numbered = {.digits = (size_t)(digits - path)};
    if (digits == base || digits[-1] != '-' || number_read(digits, &numbered.number, &numbered.width) != of)
        return false;
    (void)number_read(of + 4, &numbered.total, &unused);
    *ret = numbered;
    return numbered.width > 0 && unused > 0 && numbered.number >= 1 && numbered.number <= numbered.total;
}

void shard_paths_free(struct shard_paths *paths)
{
    for (size_t i = 0; i < paths->n; i++)
        free(paths->paths[i]);
    free(paths->paths);
    *paths = (struct shard_paths){0};
}

static int paths_new(size_t n, struct shard_paths *ret)
{
    ret->paths = calloc(n, sizeof(*ret->paths));
    ret->n = ret->paths ? n : 0;
    return ret->paths ? 0 : -ENOMEM;
}

/* -ENOENT, and that path alone; *ret is empty if there is no memory for it. */
static int missing(struct shard_paths *ret, const char *path)
{
    shard_paths_free(ret);
    if (paths_new(1, ret) == 0)
        ret->paths[0] = strdup(path);
    return -ENOENT;
}

/* By names: -ENOENT also if the path has no numbers, or others than `own`. */
static int find_by_names(const char *path, uint64_t own, size_t n, struct shard_paths *ret)
{
    struct numbered numbered;
    if (!path_numbers(path, &numbered) || numbered.number != own + 1)
        return -ENOENT;
    int r = paths_new(n, ret);
    for (size_t i = 0; i < n && r == 0; i++) {
        const int digits = (int)numbered.digits;
        if (asprintf(&ret->paths[i], "%.*s%0*zu%s", digits, path, numbered.width, i + 1,
                     path + digits + numbered.width) < 0) {
            ret->paths[i] = NULL;
            r = -ENOMEM;
        } else if (access(ret->paths[i], F_OK) < 0) {
            char *absent = ret->paths[i];
            ret->paths[i] = NULL;
            r = missing(ret, absent);
            free(absent);
            return r;
        }
    }
    if (r < 0)
        shard_paths_free(ret);
    return r;
}

/* Takes a file of the folder if it says that it is one of the model. */
static int consider(const char *path, const struct shard_place *of, shard_open_fn *open, struct shard_paths *ret)
{
    struct shard_place place;
    int fd = open(path);
    if (fd < 0)
        return fd == -ENOMEM ? fd : 0; /* whatever it is, it is none that we could use */
    int r = shard_peek(fd, &place);
    close(fd);
    if (r < 0)
        return r == -ENOMEM ? r : 0;
    if (!place.split || place.count != of->count || place.tensors != of->tensors || place.number >= of->count ||
        place.number == of->number)
        return 0;
    if (ret->paths[place.number])
        return -ENOTUNIQ;
    ret->paths[place.number] = strdup(path);
    return ret->paths[place.number] ? 0 : -ENOMEM;
}

/* Among all files of the folder, by what they say. */
static int find_by_content(const char *path, const struct shard_place *of, shard_open_fn *open, struct shard_paths *ret)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX], other[PATH_MAX + 256];
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + (slash == path)) : 1, slash ? path : ".");
    DIR *stream = opendir(folder);
    int r = stream ? paths_new((size_t)of->count, ret) : -ENOENT;
    if (r == 0)
        ret->paths[of->number] = strdup(path);
    if (r == 0 && !ret->paths[of->number])
        r = -ENOMEM;
    for (struct dirent *entry; r == 0 && (entry = readdir(stream));) {
        if (entry->d_type != DT_REG && entry->d_type != DT_UNKNOWN)
            continue;
        snprintf(other, sizeof(other), "%s/%s", folder, entry->d_name);
        r = consider(other, of, open, ret);
    }
    for (size_t i = 0; i < ret->n && r == 0; i++)
        if (!ret->paths[i])
            r = -ENOENT;
    if (stream)
        closedir(stream);
    if (r < 0)
        shard_paths_free(ret);
    return r;
}

static int find_others(const char *path, const struct shard_place *place, shard_open_fn *open, struct shard_paths *ret)
{
    const size_t n = (size_t)place->count;
    int r = find_by_names(path, place->number, n, ret);
    if (r != -ENOENT)
        return r;
    char *real = realpath(path, NULL);
    struct shard_paths found = {0};
    if (real && strcmp(real, path) != 0)
        r = find_by_names(real, place->number, n, &found);
    if (r == -ENOENT) {
        shard_paths_free(&found);
        r = find_by_content(real ? real : path, place, open, &found);
    }
    free(real);
    if (r == -ENOENT) /* the name that was looked for first is told, if there is one */
        return r;
    shard_paths_free(ret);
    *ret = found;
    return r;
}

static int only(const char *path, struct shard_paths *ret)
{
    int r = paths_new(1, ret);
    if (r < 0)
        return r;
    ret->paths[0] = strdup(path);
    if (ret->paths[0])
        return 0;
    shard_paths_free(ret);
    return -ENOMEM;
}

int shards_find(const char *path, bool any, shard_open_fn *open, struct shard_paths *ret)
{
    *ret = (struct shard_paths){0};
    struct shard_place place = {0};
    struct numbered numbered;
    int fd = open(path);
    if (fd == -EINVAL) { /* no regular file */
        int r = folder_files(path, open, SHARDS_MAX, &ret->paths, &ret->n);
        return r == -ENOTDIR ? fd : r;
    }
    if (fd < 0)
        return fd;
    int r = shard_peek(fd, &place);
    close(fd);
    if (r < 0)
        return r;
    if (place.split && place.count > 1 && place.number < place.count && (any || place.number == 0)) {
        if (place.count > SHARDS_MAX)
            return -E2BIG;
        return find_others(path, &place, open, ret);
    }
    /* It does not say what its name does. If the others are there, all of them are looked at, and refused if they do
     * not agree, before a part is taken for the whole. */
    const bool named = place.count == 0 && path_numbers(path, &numbered) && numbered.number == 1 &&
                       numbered.total > 1 && numbered.total <= SHARDS_MAX;
    if (named) {
        r = find_by_names(path, 0, (size_t)numbered.total, ret);
        if (r == 0 || !place.gguf)
            return r;
        shard_paths_free(ret);
    }
    return only(path, ret);
}
