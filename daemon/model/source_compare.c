#include "daemon/model/source_compare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef int (*compare_fn)(const void *, const void *);

static int by_identity(const void *a, const void *b)
{
    const struct identity *x = &(*(const struct source_file *const *)a)->identity,
                          *y = &(*(const struct source_file *const *)b)->identity;
    if (x->dev != y->dev)
        return x->dev < y->dev ? -1 : 1;
    return x->ino < y->ino ? -1 : x->ino > y->ino;
}

/* Files without a path come first. */
static int by_path(const void *a, const void *b)
{
    const char *x = (*(const struct source_file *const *)a)->path, *y = (*(const struct source_file *const *)b)->path;
    return x && y ? strcmp(x, y) : (x != NULL) - (y != NULL);
}

static int by_size(const void *a, const void *b)
{
    const uint64_t x = (*(const struct source_file *const *)a)->identity.size,
                   y = (*(const struct source_file *const *)b)->identity.size;
    return x < y ? -1 : x > y;
}

static void sort_files(const struct source *source, compare_fn compare, const struct source_file **ret)
{
    for (size_t i = 0; i < source->n_files; i++)
        ret[i] = &source->files[i];
    qsort(ret, source->n_files, sizeof(*ret), compare);
}

static bool equal_files(const struct source_file *a, const struct source_file *b)
{
    return identity_equal(&a->identity, &b->identity);
}

static bool untouched_files(const struct source_file *a, const struct source_file *b)
{
    return equal_files(a, b) && a->identity.ctime_ns == b->identity.ctime_ns;
}

static bool one_file(const struct source_file *a, const struct source_file *b)
{
    return identity_same_file(&a->identity, &b->identity);
}

static bool one_path(const struct source_file *a, const struct source_file *b)
{
    return a->path && b->path && strcmp(a->path, b->path) == 0;
}

static bool one_place(const struct source_file *a, const struct source_file *b)
{
    return one_path(a, b) && ((a->seen && b->seen) || (a->mount > 0 && a->mount == b->mount));
}

static bool one_size(const struct source_file *a, const struct source_file *b)
{
    return a->identity.size == b->identity.size;
}

/* Whether both have as many files, and each file has its match in the other one: the files may be given in any order.
 * 1; 0; -ENOMEM. order: unless NULL, is filled with the place in b of each file of a, if the result is 1. */
static int match_files(const struct source *a, const struct source *b, compare_fn compare,
                       bool (*match)(const struct source_file *, const struct source_file *), size_t *order)
{
    const size_t n = a->n_files;
    if (n != b->n_files || n == 0)
        return 0;
    const struct source_file **files = calloc(2 * n, sizeof(*files));
    if (!files)
        return -ENOMEM;
    sort_files(a, compare, files);
    sort_files(b, compare, files + n);
    bool same = true;
    for (size_t i = 0; i < n && same; i++) {
        same = match(files[i], files[n + i]);
        if (order)
            order[files[i] - a->files] = (size_t)(files[n + i] - b->files);
    }
    free(files);
    return same;
}

bool source_equal(const struct source *a, const struct source *b)
{
    if (a->n_files == 1 && b->n_files == 1) /* without memory, too */
        return equal_files(a->files, b->files);
    return a->size == b->size && match_files(a, b, by_identity, equal_files, NULL) == 1;
}

bool source_same_files(const struct source *a, const struct source *b)
{
    return match_files(a, b, by_identity, one_file, NULL) == 1;
}

bool source_same_paths(const struct source *a, const struct source *b)
{
    return match_files(a, b, by_path, one_place, NULL) == 1;
}

bool source_same(const struct source *a, const struct source *b)
{
    return match_files(a, b, by_identity, untouched_files, NULL) == 1;
}

bool source_same_sizes(const struct source *a, const struct source *b)
{
    return a->size == b->size && match_files(a, b, by_size, one_size, NULL) != 0;
}

/* Matches the files that are the same in both. files: those of a, then those of b, n each; what has no match is moved
 * to the front of its half. order: as in match_files(). Returns how many of each have no match. */
static size_t take_same(const struct source *a, const struct source *b, const struct source_file **files, size_t *order)
{
    const size_t n = a->n_files;
    size_t i = 0, j = 0, left_a = 0, left_b = 0;
    while (i < n || j < n) {
        const int side = i == n ? 1 : j == n ? -1 : by_identity(&files[i], &files[n + j]);
        if (side == 0) {
            order[files[i] - a->files] = (size_t)(files[n + j] - b->files);
            i++;
            j++;
        } else if (side < 0)
            files[left_a++] = files[i++];
        else
            files[n + left_b++] = files[n + j++];
    }
    return left_a;
}

/* Matches the files that are the same in both, and the others by their paths, if `match` agrees. 1; 0; -ENOMEM. */
static int match_places(const struct source *a, const struct source *b,
                        bool (*match)(const struct source_file *, const struct source_file *), size_t *order)
{
    const size_t n = a->n_files;
    if (n != b->n_files || n == 0)
        return 0;
    const struct source_file **files = calloc(2 * n, sizeof(*files));
    if (!files)
        return -ENOMEM;
    sort_files(a, by_identity, files);
    sort_files(b, by_identity, files + n);
    const size_t left = take_same(a, b, files, order);
    qsort(files, left, sizeof(*files), by_path);
    qsort(files + n, left, sizeof(*files), by_path);
    bool same = true;
    for (size_t i = 0; i < left && same; i++) {
        same = match(files[i], files[n + i]);
        order[files[i] - a->files] = (size_t)(files[n + i] - b->files);
    }
    free(files);
    return same;
}

bool source_order(const struct source *a, const struct source *b, size_t *ret)
{
    return match_files(a, b, by_path, one_path, ret) == 1 || match_places(a, b, one_path, ret) == 1;
}

bool source_same_places(const struct source *a, const struct source *b)
{
    size_t unused[SOURCE_FILES_MAX];
    return match_places(a, b, one_place, unused) == 1;
}
