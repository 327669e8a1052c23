/* Decides from a snapshot how much of a device's memory a load can get, and which models must be evicted for it.
 * Changes nothing but the candidates. Plan and Load get the same answer.
 *
 * Any thread. */
#pragma once

#include "daemon/memory/eviction.h"

#include <stddef.h>
#include <stdint.h>

/* A device's memory at one moment, in bytes. */
struct room {
    uint64_t limit; /* that all models together may use: the budget, or less if driver or control groups have less */
    uint64_t used; /* the ledger: that models use or have reserved. May exceed the limit if other programs use memory */
    uint64_t departing; /* the part of `used` that will soon be free without an eviction */
    uint64_t ahead;     /* that earlier loads wait for */
};

/* What a load could get. */
struct room_shortage {
    uint64_t available; /* without an eviction */
    uint64_t evictable; /* more than `available`, with all possible evictions */
};

/* Decides whether `bytes` more fit. Returns 0: they fit when the chosen candidates are evicted, which may be none;
 * -EAGAIN: they will fit when memory that is being freed is back, if need be with evictions then; -ENOSPC: they do not
 * fit even then; -ENOMEM. On an error no candidate is chosen. *ret_shortage is always set. */
int room_choose(const struct room *room, uint64_t bytes, struct candidate *candidates, size_t n,
                struct room_shortage *ret_shortage);
