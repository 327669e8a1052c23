/* Whether files that somebody named one by one are all of their model.
 *
 * Files of a split GGUF model say it themselves, and the daemon refuses a part of them. Safetensors files do not: of
 * these, an index or the names tell it, as shards_find() goes by them. Blocking; any thread. */
#pragma once

#include "proto/shards.h"

#include <stddef.h>

/* n: 1 or more. Returns 0: none is known to be missing, or a file that others belong to cannot be read; -ENODATA: *ret
 * has the paths of those that belong to one of these files and are not among them, for the caller to end with
 * shard_paths_free(); -ENOMEM. Files that belong to none of the others are fine. */
int shards_given(const char *const *paths, size_t n, shard_open_fn *open, struct shard_paths *ret);
