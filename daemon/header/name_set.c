#include "daemon/header/name_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

/* The table uses open addressing, and at most half of the slots. */
struct name_set_slot {
    const char *bytes; /* NULL: empty */
    size_t size;
};

int name_set_init(struct name_set *set, size_t n)
{
    size_t size = 16;

    while (size / 2 < n && size <= SIZE_MAX / 2)
        size *= 2;
    set->slots = calloc(size, sizeof *set->slots);
    if (!set->slots)
        return -ENOMEM;
    set->mask = size - 1;
    /* Early in a boot there may be no random bytes yet. Then the seed is 0: so early an attack is not a concern. */
    if (getrandom(&set->seed, sizeof set->seed, GRND_NONBLOCK) != sizeof set->seed)
        set->seed = 0;
    return 0;
}

void name_set_free(struct name_set *set)
{
    free(set->slots);
}

bool name_set_add(struct name_set *set, const char *bytes, size_t size)
{
    size_t i = (size_t)XXH3_64bits_withSeed(bytes, size, set->seed) & set->mask;

    for (; set->slots[i].bytes; i = (i + 1) & set->mask) {
        if (set->slots[i].size == size && memcmp(set->slots[i].bytes, bytes, size) == 0)
            return false;
    }
    set->slots[i] = (struct name_set_slot){bytes, size};
    return true;
}
