/* Reads the metadata in the header of a GGUF or safetensors file that stands in memory. Trusts nothing in it: every
 * length and count is held against the bytes that are left, and no memory is taken but for the entries that were found.
 *
 * The memory does not change and outlives the reader. One thread at a time. */
#pragma once

#include "client/rocmforge.h"

struct metadata;

/* Reads the header's entries; the caller frees *ret. -EBADMSG: it is not sound; -ENOMEM. */
int metadata_read(const void *bytes, size_t size, struct metadata **ret);

/* NULL is fine. */
void metadata_free(struct metadata *metadata);

size_t metadata_count(const struct metadata *metadata);

/* The entry; index is less than metadata_count(). Borrowed. */
const rf_value *metadata_at(const struct metadata *metadata, size_t index);

/* The first entry with this key, or NULL. Borrowed. */
const rf_value *metadata_find(const struct metadata *metadata, const char *key);

/* The next element of an array, from *position on, which begins as 0. Returns 1 and the element, or 0 at the end;
 * -EINVAL if this is no array of the header, or no position that this function set. */
int metadata_next(const struct metadata *metadata, const rf_value *array, uint64_t *position, rf_value *ret);
