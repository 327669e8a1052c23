/* What the store gave back, by model: the entries of each one, and its last description.
 *
 * Loop thread only. */
#pragma once

#include "daemon/keep/description.h"
#include "daemon/keep/store.h"

#include <stddef.h>
#include <stdint.h>

/* The entries of one model. */
struct model_entries {
    struct store_entry *entries; /* borrowed */
    size_t n;
    struct store_entry *latest; /* its last description */
    struct description description;
};

/* Sorts the `n` entries, and reads each model's last description. *ret has the models whose description is valid, in
 * the order of their ids; the caller frees it, and before that ends each description with description_clear(). The
 * other models are given up, see entries_drop(). Returns how many there are. Without memory there are none, and nothing
 * is given up. */
size_t entries_by_model(struct store_entry *entries, size_t n, struct model_entries **ret);

/* Takes a descriptor over. -1: there is none. */
int entries_take(struct model_entries *of_model, enum store_role role, uint32_t number);

/* Gives up what the store has of the model: removes it, closes the descriptors, and logs why. name: of the model. */
void entries_drop(struct model_entries *of_model, const char *name, const char *why);

/* Closes what nobody took over. */
void entries_close(struct store_entry *entries, size_t n);
