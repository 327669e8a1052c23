#include "daemon/memory/eviction.h"

#include <errno.h>
#include <stdlib.h>

struct ranked {
    uint64_t last_used;
    size_t index;
};

/* Sorts the most recently used first. */
static int ranked_compare(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->last_used != y->last_used)
        return x->last_used > y->last_used ? -1 : 1;
    return x->index > y->index ? -1 : x->index < y->index;
}

int eviction_choose(struct candidate *candidates, size_t n, uint64_t needed, uint64_t *ret_evictable)
{
    uint64_t freed = 0;
    for (size_t i = 0; i < n; i++) {
        freed += candidates[i].bytes;
        candidates[i].chosen = false;
    }
    if (ret_evictable)
        *ret_evictable = freed;
    if (freed < needed)
        return -ENOSPC;
    struct ranked *ranked = calloc(n ? n : 1, sizeof(*ranked));
    if (!ranked)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        ranked[i] = (struct ranked){candidates[i].last_used, i};
    qsort(ranked, n, sizeof(*ranked), ranked_compare);

    /* All candidates together free enough. Keep each one that is not needed, beginning with the most recently used. */
    for (size_t i = 0; i < n; i++) {
        struct candidate *candidate = &candidates[ranked[i].index];
        candidate->chosen = freed - candidate->bytes < needed;
        if (!candidate->chosen)
            freed -= candidate->bytes;
    }
    free(ranked);
    return 0;
}
