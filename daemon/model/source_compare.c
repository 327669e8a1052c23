#include "daemon/model/source_compare.h"

#include <stdlib.h>

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
    return a->n_files == b->n_files && a->n_files > 0 && same_files(a, b, identity_same_file);
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
