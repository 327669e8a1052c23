#include "daemon/memory/room.h"

#include <errno.h>

static uint64_t sum(uint64_t a, uint64_t b)
{
    return a + b < a ? UINT64_MAX : a + b;
}

static uint64_t beyond(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

static void choose_none(struct candidate *candidates, size_t n)
{
    for (size_t i = 0; i < n; i++)
        candidates[i].chosen = false;
}

int room_choose(const struct room *room, uint64_t bytes, struct candidate *candidates, size_t n,
                struct room_shortage *ret_shortage)
{
    const uint64_t promised = sum(room->used, room->ahead);
    const uint64_t lacking = beyond(sum(promised, bytes), room->limit);
    uint64_t evictable = 0;
    for (size_t i = 0; i < n; i++)
        evictable = sum(evictable, candidates[i].bytes);
    /* If `promised` exceeds the limit, evictions first have to make up for that; only what they free beyond it can be
     * used. */
    *ret_shortage = (struct room_shortage){
        .available = beyond(room->limit, promised),
        .evictable = beyond(evictable, beyond(promised, room->limit)),
    };
    choose_none(candidates, n);
    if (lacking == 0)
        return 0;
    if (lacking <= room->departing)
        return -EAGAIN;
    int r = eviction_choose(candidates, n, lacking - room->departing, NULL);
    if (r == 0 && room->departing > 0) {
        choose_none(candidates, n); /* choose again when that memory is back: other models may be gone by then */
        return -EAGAIN;
    }
    return r;
}
