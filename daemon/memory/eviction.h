/* Decides which models are evicted so that another one fits. It only decides; nothing is freed here. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A model that may be evicted: idle, not pinned, not leased. */
struct candidate {
    uint64_t bytes;
    uint64_t last_used; /* time of the last use; greater is more recent */
    bool chosen;        /* set by eviction_choose(): evict this model */
};

/* Chooses candidates that together free at least `needed` bytes. Evicts the least recently used, and never a model that
 * is not needed to reach `needed`. The exact rule compares all sets that free enough. It takes the set whose most
 * recently used member is the oldest. If several sets have this member, their second most recent members are compared
 * in the same way, and so on. If two candidates were used at the same time, the first in the array counts as older.
 *
 * Returns 0; -ENOSPC if all candidates together do not free enough, and then none is chosen; -ENOMEM. *ret_evictable,
 * unless NULL, is set to the bytes of all candidates. The order of the array stays the same. */
int eviction_choose(struct candidate *candidates, size_t n, uint64_t needed, uint64_t *ret_evictable);
