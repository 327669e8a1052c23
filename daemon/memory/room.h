/* What a load could get of a device's memory, and which models have to go for it: a pure decision, from a snapshot.
 * Whoever only asks and whoever loads are told the same.
 *
 * Any thread. */
#pragma once

#include "daemon/memory/eviction.h"

#include <stddef.h>
#include <stdint.h>

/* A device's memory at one moment, in bytes. */
struct room {
    uint64_t limit;     /* that models may take in all: of the budget, and of what driver and control groups have */
    uint64_t used;      /* the ledger: that models take, or were promised. More than the limit, if others took some */
    uint64_t departing; /* of these, what comes back by itself in a moment */
    uint64_t ahead;     /* that others wait for, who came earlier */
};

/* What could have been had. */
struct room_shortage {
    uint64_t available; /* without an eviction */
    uint64_t evictable; /* with all evictions that may be, beside that */
};

/* Decides for `bytes` more. Returns 0: they fit once the chosen candidates are gone; -EAGAIN: memory is on its way
 * back, which suffices, if need be with what may be evicted then; -ENOSPC: not even that does; -ENOMEM. Unless it
 * returns 0 none is chosen. *ret_shortage is set in any case. */
int room_choose(const struct room *room, uint64_t bytes, struct candidate *candidates, size_t n,
                struct room_shortage *ret_shortage);
