#include "proto/folder.h"

#include "proto/array.h"
#include "proto/json_read.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MAX_BYTES 255u /* of a file */

/* File names that an index has: as often as it names them, until unique() was called. */
struct names {
    char **names;
    size_t n, capacity;
};

static void names_free(struct names *names)
{
    for (size_t i = 0; i < names->n; i++)
        free(names->names[i]);
    free(names->names);
    *names = (struct names){0};
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void unique(struct names *names)
{
    size_t kept = 0;
    if (names->n > 0)
        qsort(names->names, names->n, sizeof(*names->names), compare);
    for (size_t i = 0; i < names->n; i++) {
        if (kept > 0 && strcmp(names->names[kept - 1], names->names[i]) == 0)
            free(names->names[i]);
        else
            names->names[kept++] = names->names[i];
    }
    names->n = kept;
}

/* Tensors of one file mostly follow each other, so most names are not stored again. */
static int names_add(struct names *names, const char *name)
{
    if (names->n > 0 && strcmp(names->names[names->n - 1], name) == 0)
        return 0;
    int r = array_reserve(&names->names, &names->capacity, names->n, sizeof(*names->names), 16);
    char *copy = r == 0 ? strdup(name) : NULL;
    if (!copy)
        return -ENOMEM;
    names->names[names->n++] = copy;
    return 0;
}

/* A name of a file in the folder itself. */
static bool is_plain(const char *name)
{
    return name[0] && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int read_map(struct json_reader *json, struct names *names)
{
    struct json_span key, value;
    bool first = true;
    int more = json_enter(json, '{');
    if (more < 0)
        return -EBADMSG;
    while ((more = json_next_key(json, &first, &key)) == 1) {
        char name[NAME_MAX_BYTES + 1];
        if (json_read_string(json, &value) < 0 || value.decoded > NAME_MAX_BYTES)
            return -EBADMSG;
        json_decode(json, &value, name);
        name[value.decoded] = '\0';
        if (!is_plain(name))
            return -EBADMSG;
        int r = names_add(names, name);
        if (r < 0)
            return r;
    }
    return more < 0 ? -EBADMSG : 0;
}

static int read_index(struct json_reader *json, struct names *names)
{
    struct json_span key;
    bool first = true, seen = false;
    int more = json_enter(json, '{');
    if (more < 0)
        return -EBADMSG;
    while ((more = json_next_key(json, &first, &key)) == 1) {
        const bool map = json_equals(json, &key, "weight_map");
        if (map && seen)
            return -EBADMSG;
        seen = seen || map;
        int r = map ? read_map(json, names) : json_skip(json) < 0 ? -EBADMSG : 0;
        if (r < 0)
            return r;
    }
    return more < 0 || json_end(json) < 0 || names->n == 0 ? -EBADMSG : 0;
}

/* The whole file, which the caller frees. */
static int read_file(int fd, char **ret, size_t *ret_size)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (status.st_size > FOLDER_INDEX_MAX)
        return -E2BIG;
    const size_t size = (size_t)status.st_size;
    char *bytes = malloc(size + 1);
    if (!bytes)
        return -ENOMEM;
    size_t filled = 0;
    while (filled < size) {
        ssize_t n = pread(fd, bytes + filled, size - filled, (off_t)filled);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            const int error = n < 0 ? -errno : -EBADMSG; /* it was cut short meanwhile */
            free(bytes);
            return error;
        }
        filled += (size_t)n;
    }
    *ret = bytes;
    *ret_size = size;
    return 0;
}

/* Writes the path of an entry of the folder. The caller frees it; NULL: no memory. */
static char *entry_path(const char *folder, const char *name)
{
    const size_t n = strlen(folder);
    char *path;
    return asprintf(&path, "%s%s%s", folder, n > 0 && folder[n - 1] == '/' ? "" : "/", name) < 0 ? NULL : path;
}

/* -ENOTDIR: there is no such file either. */
static int only_name(const char *folder, struct names *ret)
{
    char *path = entry_path(folder, FOLDER_FILE);
    const int r = !path ? -ENOMEM : access(path, F_OK) == 0 ? 0 : -ENOTDIR;
    free(path);
    return r < 0 ? r : names_add(ret, FOLDER_FILE);
}

static int index_names(const char *folder, int (*open)(const char *path), struct names *ret)
{
    char *path = entry_path(folder, FOLDER_INDEX), *bytes = NULL;
    struct json_reader json = {0};
    int fd = path ? open(path) : -ENOMEM;
    free(path);
    if (fd == -ENOENT)
        return only_name(folder, ret);
    if (fd < 0)
        return fd;
    int r = read_file(fd, &bytes, &json.size);
    close(fd);
    json.bytes = bytes;
    if (r == 0)
        r = read_index(&json, ret);
    free(bytes);
    return r;
}

int folder_files(const char *path, int (*open)(const char *path), size_t most, char ***ret, size_t *ret_n)
{
    struct names names = {0};
    struct stat status;
    if (stat(path, &status) < 0)
        return -errno;
    if (!S_ISDIR(status.st_mode))
        return -ENOTDIR;
    int r = index_names(path, open, &names);
    if (r == 0) {
        unique(&names);
        r = names.n > most ? -E2BIG : 0;
    }
    for (size_t i = 0; i < names.n && r == 0; i++) {
        char *whole = entry_path(path, names.names[i]);
        free(names.names[i]);
        names.names[i] = whole;
        r = whole ? 0 : -ENOMEM;
    }
    if (r < 0) {
        names_free(&names);
        return r;
    }
    *ret = names.names;
    *ret_n = names.n;
    return 0;
}

int folder_files_with(const char *path, int (*open)(const char *path), size_t most, char ***ret, size_t *ret_n,
                      size_t *ret_number)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *folder = slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
    struct names files = {0};
    size_t number = 0;
    int r = folder ? folder_files(folder, open, most, &files.names, &files.n) : -ENOMEM;
    free(folder);
    if (r < 0)
        return r == -ENOMEM ? r : -ENODATA;
    for (size_t i = 0; i < files.n && files.n > 1 && number == 0; i++)
        number = strcmp(strrchr(files.names[i], '/') + 1, base) == 0 ? i + 1 : 0;
    if (number == 0) {
        names_free(&files);
        return -ENODATA;
    }
    *ret = files.names;
    *ret_n = files.n;
    *ret_number = number;
    return 0;
}
