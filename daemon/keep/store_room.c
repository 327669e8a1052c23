#include "daemon/keep/store_room.h"

#include "daemon/keep/store.h"

#include <errno.h>

void store_room_init(struct store_room *room, struct quota *quota)
{
    *room = (struct store_room){.quota = quota, .most = store_most()};
}

int store_room_begin(struct store_room *room, uid_t uid, struct store_charge *ret)
{
    *ret = (struct store_charge){0};
    return room->quota ? quota_take_none(room->quota, uid, QUOTA_KEPT, &ret->of_user) : 0;
}

int store_room_claim(struct store_room *room, struct store_charge *charge, size_t n, size_t beside)
{
    uint64_t unused;
    const size_t others = room->used - charge->n;
    if (n > charge->n && !quota_may_grow(&charge->of_user, n - charge->n, &unused))
        return -EDQUOT;
    if (others + n + (beside ? beside : 1) > room->most)
        return -ENOSPC;
    store_room_set(room, charge, n);
    return 0;
}

void store_room_set(struct store_room *room, struct store_charge *charge, size_t n)
{
    room->freed |= n < charge->n;
    room->used = room->used - charge->n + n;
    charge->n = n;
    quota_set(&charge->of_user, n);
}

void store_room_end(struct store_room *room, struct store_charge *charge)
{
    store_room_set(room, charge, 0);
    quota_return(&charge->of_user);
}
