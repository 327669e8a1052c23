/* The files of one load as far as they are not in the page cache: finds out which parts are not, and reads these past
 * the cache (daemon/base/direct.h). So a model that will be resident does not fill the cache as well.
 *
 * A file is read like this only if it can be: the kernel tells what the page cache has of it, and the daemon itself may
 * open it, because O_DIRECT belongs to the open file and not to a call, and the descriptor that a client passed is not
 * changed. So files in a tmpfs, on FUSE and on most networks are read in the ordinary way, and so is a file that only
 * the client may open. */
#pragma once

#include "daemon/base/direct.h"
#include "daemon/model/source.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the administrator asks for. */
enum page_cache {
    PAGE_CACHE_AUTO, /* what is not in the page cache is read past it, where that is possible */
    PAGE_CACHE_KEEP, /* everything is read through the page cache, and stays there */
    PAGE_CACHE_DROP, /* as AUTO; and when a model is resident, its files are dropped from the page cache */
};

struct cold;

/* loop. Takes a reference to the source. `direct` outlives it. -ENOMEM. */
int cold_new(struct direct *direct, struct source *source, struct cold **ret);

/* loop. No read is under way. NULL is fine. */
void cold_free(struct cold *cold);

/* A range of bytes of a file. */
struct span_bytes {
    uint64_t begin;
    uint64_t end;
};

/* worker. The smallest range that has all pages of `whole` that were not in the page cache when the load asked first,
 * in multiples of DIRECT_ALIGNMENT; begin equals end if all were, or if the file is not to be read like this. Small
 * gaps, and small cached parts, may be overlooked in a large file. */
struct span_bytes cold_missing(struct cold *cold, size_t file, struct span_bytes whole);

/* worker. Reads past the cache. All but the descriptor is set. */
void cold_read(struct cold *cold, size_t file, struct direct_read *read);

/* worker. The file cannot be read like this after all: cold_missing() finds nothing of it from now on. */
void cold_refuse(struct cold *cold, size_t file);

/* worker. Drops a source's files from the page cache, but for pages that others have mapped or have just written. */
void cold_drop(const struct source *source);
