/* Which models have to go so that another one fits: a pure decision, made before anything is freed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A model that may be evicted: idle, not pinned, not leased. */
struct candidate {
    uint64_t bytes;
    uint64_t last_used; /* the greater, the more recent */
    bool chosen;        /* the answer */
};

/* Chooses candidates that together free at least `needed` bytes: the least recently used, and none that the others can
 * do without. Put exactly: of all sets that suffice, the one whose most recently used member is the oldest; of those,
 * the one whose second is; and so on. Of two used at the same time, the first in the array counts as the older.
 *
 * Returns 0; or -ENOSPC if all of them together do not suffice, and then none is chosen. *ret_evictable, unless NULL,
 * is what all of them would free. Reorders nothing. -ENOMEM. */
int eviction_choose(struct candidate *candidates, size_t n, uint64_t needed, uint64_t *ret_evictable);
