#include "proto/shards.h"

#include "proto/array.h"
#include "proto/folder.h"
#include "proto/gguf_value.h"
#include "proto/shard_choice.h"
#include "proto/shard_names.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files that may be one of a model's, and bytes of their headers: of several models. */
#define CANDIDATES_MAX      (4 * SHARDS_MAX)
#define CONTENT_HEADERS_MAX (4 * HEADER_BYTES_MAX)

/* Links that a path leads through, and the file itself: more than the kernel follows. */
#define LINKS_MAX 42u

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

/* 0 if all of them are there; else -ENOENT, and only those that are missing stay. */
static int check_there(struct shard_paths *paths)
{
    size_t there = 0, kept = 0;
    while (there < paths->n && access(paths->paths[there], F_OK) == 0)
        there++;
    if (there == paths->n)
        return 0;
    for (size_t i = 0; i < paths->n; i++) {
        if (i >= there && access(paths->paths[i], F_OK) < 0)
            paths->paths[kept++] = paths->paths[i];
        else
            free(paths->paths[i]);
    }
    paths->n = kept; /* 0: the missing one has come meanwhile */
    return -ENOENT;
}

bool shard_follows(const char *path)
{
    struct shard_numbers numbered;
    if (!shard_numbers_read(path, &numbered) || numbered.number == 1)
        return false;
    char *first = shard_numbers_path(path, &numbered, 0);
    const bool follows = first && access(first, F_OK) == 0;
    free(first);
    return follows;
}

/* By names: -ENOENT also if the path has no numbers, or others than `own`. */
static int find_by_names(const char *path, uint64_t own, size_t n, struct shard_paths *ret)
{
    struct shard_numbers numbered;
    if (!shard_numbers_read(path, &numbered) || numbered.number != own + 1)
        return -ENOENT;
    int r = paths_new(n, ret);
    for (size_t i = 0; i < n && r == 0; i++) {
        ret->paths[i] = shard_numbers_path(path, &numbered, i);
        r = ret->paths[i] ? 0 : -ENOMEM;
    }
    if (r < 0) {
        shard_paths_free(ret);
        return r;
    }
    ret->number = (size_t)own + 1;
    ret->count = n;
    return check_there(ret);
}

/* --- the links that a path leads through --- */

/* The path, then what each link leads to, the file itself being the last one: in each of these folders the other files
 * may be. *ret is empty if there is no memory. */
static int chain_of(const char *path, struct shard_paths *ret)
{
    char *next = strdup(path), target[PATH_MAX];
    *ret = (struct shard_paths){0};
    int r = next ? paths_new(LINKS_MAX, ret) : -ENOMEM;
    ret->n = 0;
    while (r == 0 && next) {
        ret->paths[ret->n++] = next;
        const char *at = next, *slash = strrchr(at, '/');
        const ssize_t n = readlink(at, target, sizeof(target) - 1);
        next = NULL;
        if (n <= 0 || ret->n == LINKS_MAX)
            break;
        target[n] = '\0';
        if (asprintf(&next, "%.*s%s", target[0] == '/' || !slash ? 0 : (int)(slash + 1 - at), at, target) < 0) {
            next = NULL;
            r = -ENOMEM;
        }
    }
    if (r < 0) {
        free(next);
        shard_paths_free(ret);
    }
    return r;
}

/* --- by what the files say --- */

/* Files that may be those of the model. */
struct pool {
    struct shard_candidate *all;
    size_t n, capacity;
    uint64_t left; /* bytes that their headers may still take: nobody's folder keeps the caller for long */
    const struct shard_place *of; /* what the file says that was asked for */
};

static void pool_clear(struct pool *pool)
{
    for (size_t i = 0; i < pool->n; i++) {
        free(pool->all[i].path);
        shard_header_free(&pool->all[i].header);
    }
    free(pool->all);
    *pool = (struct pool){.of = pool->of};
}

static bool pool_has(const struct pool *pool, const struct stat *status)
{
    for (size_t i = 0; i < pool->n; i++)
        if (pool->all[i].dev == status->st_dev && pool->all[i].ino == status->st_ino)
            return true;
    return false;
}

/* Whether a file that says this may be one of the model. A writer need not put the counts into all files. */
static bool may_be(const struct pool *pool, const struct shard_place *place)
{
    const struct shard_place *of = pool->of;
    if (!place->split || place->number >= of->count)
        return false;
    return (place->count == of->count || place->count == 0) &&
           (place->tensors == of->tensors || place->tensors == UINT64_MAX || of->tensors == UINT64_MAX);
}

/* Adds the open file, if it may be one of the model's and is not there already. named: its number by its name, from 1
 * on; 0: its name tells none. -ENOMEM; 0 also if it was not added. */
static int pool_add_open(struct pool *pool, const char *path, int fd, uint64_t named)
{
    struct shard_candidate candidate = {0};
    struct shard_place place;
    struct stat status;
    int r = fstat(fd, &status) < 0 ? -errno : shard_peek(fd, &place);
    if (r < 0 || pool->n == CANDIDATES_MAX || !may_be(pool, &place) || pool_has(pool, &status))
        return r == -ENOMEM ? r : 0; /* whatever it is, it is none that we could use */
    r = shard_header_read(fd, pool->left, &candidate.header);
    if (r < 0)
        return r == -ENOMEM ? r : 0;
    candidate.named = named == candidate.header.place.number + 1;
    pool->left -= candidate.header.bytes;
    candidate.dev = status.st_dev;
    candidate.ino = status.st_ino;
    candidate.path = strdup(path);
    r = candidate.path ? array_reserve(&pool->all, &pool->capacity, pool->n, sizeof(*pool->all), 16) : -ENOMEM;
    /* Another process may have written to it between the two reads. */
    if (r < 0 || !may_be(pool, &candidate.header.place)) {
        free(candidate.path);
        shard_header_free(&candidate.header);
        return r;
    }
    pool->all[pool->n++] = candidate;
    return 0;
}

static int pool_add(struct pool *pool, const char *path, uint64_t named, shard_open_fn *open)
{
    const int fd = open(path);
    if (fd < 0)
        return fd == -ENOMEM ? fd : 0;
    const int r = pool_add_open(pool, path, fd, named);
    close(fd);
    return r;
}

/* Adds the files of the folder that `path` is in. */
static int pool_add_folder(struct pool *pool, const char *path, shard_open_fn *open)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX], other[PATH_MAX + 256];
    struct shard_numbers numbered;
    const bool has_numbers = shard_numbers_read(path, &numbered);
    const char *base = slash ? slash + 1 : path;
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - path + (slash == path)) : 1, slash ? path : ".");
    DIR *stream = opendir(folder);
    int r = 0;
    for (struct dirent *entry; stream && r == 0 && (entry = readdir(stream));) {
        if (entry->d_type != DT_REG && entry->d_type != DT_LNK && entry->d_type != DT_UNKNOWN)
            continue;
        snprintf(other, sizeof(other), "%s%s%s", folder, folder[strlen(folder) - 1] == '/' ? "" : "/", entry->d_name);
        r = pool_add(pool, other, has_numbers ? shard_number_beside(base, entry->d_name) : 0, open);
    }
    if (stream)
        closedir(stream);
    return r;
}

static int by_number(const void *a, const void *b)
{
    const struct shard_candidate *x = a, *y = b;
    if (x->header.place.number != y->header.place.number)
        return x->header.place.number < y->header.place.number ? -1 : 1;
    return strcmp(x->path, y->path);
}

/* The paths of those with this number. */
static int list_candidates(const struct pool *pool, size_t number, struct shard_paths *ret)
{
    int r = paths_new(pool->n, ret);
    ret->n = 0;
    for (size_t i = 0; i < pool->n && r == 0; i++)
        if (pool->all[i].header.place.number == number) {
            ret->paths[ret->n] = strdup(pool->all[i].path);
            r = ret->paths[ret->n++] ? 0 : -ENOMEM;
        }
    if (r < 0)
        shard_paths_free(ret);
    return r;
}

/* Chooses among the files of the pool. -ENOTUNIQ: *ret has the files that may be the same one. */
static int pool_choose(const struct pool *pool, bool by_name, struct shard_paths *ret)
{
    const size_t n = (size_t)pool->of->count;
    size_t *choice = calloc(n, sizeof(*choice)), number;
    int r = choice ? shard_choose(pool->all, pool->n, n, by_name, choice, &number) : -ENOMEM;
    assert(r != 0 || pool->all); /* what was chosen is there */
    if (r == 0)
        r = paths_new(n, ret);
    for (size_t i = 0; i < n && r == 0; i++) {
        ret->paths[i] = strdup(pool->all[choice[i]].path);
        r = ret->paths[i] ? 0 : -ENOMEM;
    }
    if (r == -ENOMEM)
        shard_paths_free(ret);
    if (r == -ENOTUNIQ && list_candidates(pool, number, ret) < 0)
        r = -ENOMEM;
    free(choice);
    return r;
}

/* Whether the files that were found by name are those of one model. -ENOENT: they are not. */
static int check_names(const struct shard_paths *paths, const struct shard_place *of, shard_open_fn *open)
{
    struct pool pool = {.of = of, .left = HEADER_BYTES_MAX};
    struct shard_paths unused = {0};
    int r = 0;
    for (size_t i = 0; i < paths->n && r == 0; i++) {
        const size_t before = pool.n;
        r = pool_add(&pool, paths->paths[i], i + 1, open);
        if (r == 0 && (pool.n == before || !pool.all[before].named))
            r = -ENOENT;
    }
    if (r == 0)
        r = pool_choose(&pool, true, &unused);
    shard_paths_free(&unused);
    pool_clear(&pool);
    return r;
}

/* Among all files of the chain's folders, by what they say. The file that was asked for is one of the model's.
 * -ENODATA: it has no valid header. */
static int find_by_content(const struct shard_paths *chain, const struct shard_place *of, shard_open_fn *open,
                           struct shard_paths *ret)
{
    struct pool pool = {.of = of, .left = CONTENT_HEADERS_MAX};
    int r = pool_add(&pool, chain->paths[0], of->number + 1, open);
    if (r == 0 && pool.n == 0)
        r = -ENODATA;
    for (size_t i = 0; i < chain->n && r == 0; i++)
        r = pool_add_folder(&pool, chain->paths[i], open);
    size_t kept = 1;
    for (size_t i = kept; i < pool.n && r == 0; i++) { /* no other file counts for its number */
        if (pool.all[i].header.place.number == of->number) {
            free(pool.all[i].path);
            shard_header_free(&pool.all[i].header);
        } else
            pool.all[kept++] = pool.all[i];
    }
    pool.n = r == 0 ? kept : pool.n;
    if (r == 0) {
        qsort(pool.all, pool.n, sizeof(*pool.all), by_number);
        r = pool_choose(&pool, true, ret);
    }
    if (r == -ENOENT)
        r = pool_choose(&pool, false, ret);
    pool_clear(&pool);
    return r;
}

/* In the folders of all links that the path leads through: by names, if the files say the same; else by what the files
 * say. If that finds none, files that have the names are taken all the same: it will be told what is wrong with them.
 */
static int find_others(const char *path, const struct shard_place *place, shard_open_fn *open, struct shard_paths *ret)
{
    struct shard_paths chain = {0}, named = {0}, absent = {0};
    int r = chain_of(path, &chain);
    bool found = false;
    for (size_t i = 0; i < chain.n && r == 0 && !found; i++) {
        struct shard_paths paths = {0};
        r = find_by_names(chain.paths[i], place->number, (size_t)place->count, &paths);
        const bool all = r == 0;
        if (all)
            r = check_names(&paths, place, open);
        found = r == 0;
        r = r == -ENOENT || r == -ENOTUNIQ ? 0 : r;
        struct shard_paths *keeper = all ? &named : &absent; /* the first of each counts */
        if (r == 0 && (found || keeper->n == 0)) {
            shard_paths_free(keeper);
            *keeper = paths;
        } else
            shard_paths_free(&paths);
    }
    struct shard_paths content = {0};
    if (r == 0 && !found)
        r = find_by_content(&chain, place, open, &content);
    else if (r == 0) {
        content = named;
        named = (struct shard_paths){0};
    }
    if ((r == -ENOENT || r == -ENODATA) && named.n > 0) {
        content = named;
        named = (struct shard_paths){0};
        r = 0;
    } else if (r == -ENODATA)
        r = only(path, &content);
    else if (r == -ENOENT) { /* the name that was looked for first is told, if there is one */
        content = absent;
        absent = (struct shard_paths){0};
    }
    shard_paths_free(&chain);
    shard_paths_free(&named);
    shard_paths_free(&absent);
    *ret = content;
    return r;
}

/* The files that an index names together with this one, in the folders of all links. -ENODATA: none does; -ENOENT: some
 * of them are missing. */
static int find_indexed(const char *path, shard_open_fn *open, struct shard_paths *ret)
{
    struct shard_paths chain;
    int r = chain_of(path, &chain);
    if (r < 0)
        return r;
    r = -ENODATA;
    for (size_t i = 0; i < chain.n && r == -ENODATA; i++)
        r = folder_files_with(chain.paths[i], open, SHARDS_MAX, &ret->paths, &ret->n, &ret->number);
    shard_paths_free(&chain);
    ret->count = ret->n;
    return r < 0 ? r : check_there(ret);
}

/* The files that the names of a file promise that itself says nothing: in the folders of all links. later: it need not
 * be the first one. -ENOENT. */
static int find_promised(const char *path, bool later, struct shard_paths *ret)
{
    struct shard_paths chain;
    struct shard_numbers numbered;
    int r = chain_of(path, &chain), best = -ENOENT;
    for (size_t i = 0; i < chain.n && r == 0 && best != 0; i++) {
        if (!shard_numbers_read(chain.paths[i], &numbered) || (numbered.number != 1 && !later) || numbered.total < 2 ||
            numbered.total > SHARDS_MAX)
            continue;
        struct shard_paths paths = {0};
        r = find_by_names(chain.paths[i], numbered.number - 1, (size_t)numbered.total, &paths);
        best = r == 0 ? 0 : best;
        r = r == -ENOENT ? 0 : r;
        if (best == 0 || ret->count == 0) {
            shard_paths_free(ret);
            *ret = paths;
        } else
            shard_paths_free(&paths);
    }
    shard_paths_free(&chain);
    return r < 0 ? r : best;
}

int shards_find(const char *path, bool any, shard_open_fn *open, struct shard_paths *ret)
{
    *ret = (struct shard_paths){0};
    struct shard_place place = {0};
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
    if (!place.gguf) {
        r = find_indexed(path, open, ret);
        if (r != -ENODATA)
            return r;
    }
    /* It does not say what its name does. If the others are there, all of them are looked at, and refused if they do
     * not agree, before a part is taken for the whole. */
    if (place.count == 0) {
        r = find_promised(path, !place.gguf, ret);
        if (r == 0 || (r == -ENOENT && ret->count > 0 && !place.gguf) || (r < 0 && r != -ENOENT))
            return r;
        shard_paths_free(ret);
    }
    return only(path, ret);
}
