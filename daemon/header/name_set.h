/* A set of names, which finds names that occur twice.
 *
 * Names come from untrusted files. The hash has a random seed, so that nobody can choose names that all get the same
 * slot. One thread at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct name_set {
    struct name_set_slot *slots;
    size_t mask;
    uint64_t seed;
};

/* Makes an empty set with room for `n` names; n may be 0. The caller frees the set. -ENOMEM. */
int name_set_init(struct name_set *set, size_t n);

/* A set whose bytes are all 0 is allowed. */
void name_set_free(struct name_set *set);

/* Adds a name, which may have any bytes. The set keeps a pointer to them, so they must live as long as the set. Returns
 * false if the name is in the set already. No more than `n` different names may be added. */
bool name_set_add(struct name_set *set, const char *bytes, size_t size);
