#include "daemon/model/source_sort.h"

#include "daemon/base/worker.h"
#include "proto/shard_header.h"
#include "proto/shard_names.h"

#include <stdlib.h>
#include <string.h>

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Which one of the model's files a file is, from 0 on. SIZE_MAX: it does not tell. */
typedef size_t number_fn(const struct source *source, size_t file);

static size_t number_named(const struct source *source, size_t file)
{
    const char *first = source->files[0].path, *path = source->files[file].path;
    return first && path ? (size_t)shard_number_beside(base_of(first), base_of(path)) - 1 : SIZE_MAX;
}

static size_t number_said(const struct source *source, size_t file)
{
    struct shard_place place;
    if (shard_peek(source->files[file].fd, &place) < 0 || !place.split)
        return SIZE_MAX;
    /* Only the first file's count counts, as where the headers are read. */
    return place.number > 0 || place.count == source->n_files ? (size_t)place.number : SIZE_MAX;
}

/* Sets order[i] to the index of the file that is number i. False: they stand in this order, or not each of them tells a
 * number of its own. The first one is asked last, and not at all if all others stand in their places: its header may be
 * long. */
static bool find_order(const struct source *source, number_fn *number_of, size_t *order)
{
    const size_t n = source->n_files;
    bool moved = false;
    for (size_t i = 0; i < n; i++)
        order[i] = SIZE_MAX;
    for (size_t i = n; i-- > 0 && (i > 0 || moved);) {
        const size_t number = number_of(source, i);
        if (number >= n || order[number] != SIZE_MAX)
            return false;
        order[number] = i;
        moved = moved || number != i;
    }
    return moved;
}

void source_sort_by_names(struct source *source)
{
    size_t order[SOURCE_FILES_MAX];
    const size_t n = source->n_files;
    if (n < 2 || !find_order(source, number_named, order))
        return;
    struct source_file *files = calloc(n, sizeof(*files));
    if (!files)
        return;
    for (size_t i = 0; i < n; i++)
        files[i] = source->files[order[i]];
    memcpy(source->files, files, n * sizeof(*files));
    source->path = source->files[0].path;
    free(files);
}

struct source *source_sort_by_contents(const struct source *source)
{
    size_t order[SOURCE_FILES_MAX];
    struct source *sorted = NULL;
    struct device_fault unused;
    worker_file_begin();
    if (source->n_files > 1 && find_order(source, number_said, order) &&
        source_reorder(source, order, &sorted, &unused) < 0)
        sorted = NULL;
    worker_file_end();
    return sorted;
}
