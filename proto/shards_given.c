#include "proto/shards_given.h"

#include "proto/shard_header.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* One of the files that were named. */
struct given {
    dev_t dev;
    ino_t ino;
    bool there; /* dev and ino are set */
    bool known; /* it is one of the files that belong together with an earlier one */
};

static void look(const char *path, struct given *ret)
{
    struct stat status;
    *ret = (struct given){.there = stat(path, &status) == 0};
    if (ret->there) {
        ret->dev = status.st_dev;
        ret->ino = status.st_ino;
    }
}

/* Marks the given file that this path leads to. False: it is none of them. */
static bool mark(struct given *given, size_t n, const char *path)
{
    struct given other;
    look(path, &other);
    for (size_t i = 0; other.there && i < n; i++)
        if (given[i].there && given[i].dev == other.dev && given[i].ino == other.ino) {
            given[i].known = true;
            return true;
        }
    return false;
}

/* Keeps those that were not given. */
static void keep_missing(struct shard_paths *paths, struct given *given, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < paths->n; i++) {
        if (mark(given, n, paths->paths[i]))
            free(paths->paths[i]);
        else
            paths->paths[kept++] = paths->paths[i];
    }
    paths->n = kept;
}

/* Whether the file may have others that it does not tell of itself. */
static bool is_silent(const char *path, shard_open_fn *open)
{
    struct shard_place place;
    const int fd = open(path);
    if (fd < 0)
        return false;
    const bool silent = shard_peek(fd, &place) == 0 && !place.gguf;
    close(fd);
    return silent;
}

int shards_given(const char *const *paths, size_t n, shard_open_fn *open, struct shard_paths *ret)
{
    struct given *given = calloc(n, sizeof(*given));
    int r = given ? 0 : -ENOMEM;
    for (size_t i = 0; i < n && r == 0; i++)
        look(paths[i], &given[i]);
    for (size_t i = 0; i < n && r == 0; i++) {
        struct shard_paths found = {0};
        if (given[i].known || !is_silent(paths[i], open))
            continue;
        r = shards_find(paths[i], true, open, &found);
        if (r == 0 || r == -ENOENT) /* with -ENOENT only those are found that are missing */
            keep_missing(&found, given, n);
        if (r != -ENOMEM)
            r = found.n > 0 ? -ENODATA : 0;
        if (r == -ENODATA)
            *ret = found;
        else
            shard_paths_free(&found);
    }
    free(given);
    return r;
}
