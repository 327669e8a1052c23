/* A set of names, to tell whether one comes twice.
 *
 * Names come from strangers: the hash has a random seed, so that they cannot be made to fall on one slot. One thread at
 * a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct name_set {
    struct name_set_slot *slots;
    size_t mask;
    uint64_t seed;
};

/* Makes an empty set with room for `n` names, of which there may be none; the caller frees it. -ENOMEM. */
int name_set_init(struct name_set *set, size_t n);

/* A set of zeros is fine. */
void name_set_free(struct name_set *set);

/* Adds a name of any bytes, which are borrowed as long as the set lives. Returns false if it is there already. No more
 * than `n` different names may be added. */
bool name_set_add(struct name_set *set, const char *bytes, size_t size);
