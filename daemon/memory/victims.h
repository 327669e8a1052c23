/* Which models have to go: makes the snapshot that room.h decides on, of the registry and the ledgers. victims.c has
 * those functions of residency.h, too, that only ask.
 *
 * Loop thread only. */
#pragma once

#include "daemon/memory/residency.h"

/* Nobody uses it, or wants it kept. */
bool victims_may_go(const struct model *model);

/* Chooses models for `bytes` of the device's memory. `charged`: of these, what the ledger has already. On success adds
 * the models to the array, which has room for all that there are. Returns what room_choose() does. */
int victims_choose(const struct residency *residency, const struct device *device, uint64_t bytes, uint64_t charged,
                   uint64_t ahead, struct model **models, size_t *n, struct room_shortage *ret_shortage);
