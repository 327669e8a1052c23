/* The room in the store, and which user has how much of it.
 *
 * A store that is full gives no answer: it closes what it is sent. So the daemon counts, and sends nothing that would
 * not fit. Each user may have a share only (QUOTA_KEPT in quota.h): nobody's models can push out those of others.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/quota.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct store_room {
    struct quota *quota; /* borrowed; NULL: users have no limits */
    size_t most;         /* descriptors that the store takes */
    size_t used;
    bool freed; /* something has become free; the owner clears it when it has tried again */
};

/* What one model has of it. All zero: nothing. */
struct store_charge {
    size_t n;
    struct quota_charge of_user;
};

void store_room_init(struct store_room *room, struct quota *quota);

/* Nothing is charged yet. -ENOMEM. */
int store_room_begin(struct store_room *room, uid_t uid, struct store_charge *ret);

/* Makes the charge `n` descriptors. beside: how many more the store has for a moment, until what is exchanged was
 * removed; at least one is always left free for that, so a charge that stays the same, with 1 beside it, always fits.
 * -EDQUOT: the user would have more than a share; -ENOSPC: the store is full. Then the charge stays as it is. */
int store_room_claim(struct store_room *room, struct store_charge *charge, size_t n, size_t beside);

/* Makes the charge `n` descriptors whatever the limits say: the store has them already, or not any more. */
void store_room_set(struct store_room *room, struct store_charge *charge, size_t n);

/* Ends a charge. */
void store_room_end(struct store_room *room, struct store_charge *charge);
