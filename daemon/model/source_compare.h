/* Whether two sources are of the same files. A source without files is the same as none.
 *
 * Any thread. */
#pragma once

#include "daemon/model/source.h"

#include <stdbool.h>

/* Whether both have the same files, in any order, with equal sizes and modification times. Then the contents are taken
 * to be equal. */
bool source_equal(const struct source *a, const struct source *b);

/* Like source_equal(), and the inodes' change times (ctime) are equal as well. A new mode or a new link changes the
 * ctime too. */
bool source_same(const struct source *a, const struct source *b);

/* The same files in whatever order, whatever was done to them since. Without memory to tell: false. */
bool source_same_files(const struct source *a, const struct source *b);

/* Files of the same places (source.h) in whatever order, whichever files were there. Without memory to tell: false. */
bool source_same_paths(const struct source *a, const struct source *b);

/* Each file of one is the same file as one of the other, or of the same place. Without memory to tell: false. */
bool source_same_places(const struct source *a, const struct source *b);

/* As many files, of the same sizes, in any order. Without memory to tell: whether they are as many bytes together. */
bool source_same_sizes(const struct source *a, const struct source *b);

/* If each file of one is the same file as one of the other, or has the same path: true, and ret[i] is the index in b of
 * a's file i. ret has room for a->n_files. False as well without memory. */
bool source_order(const struct source *a, const struct source *b, size_t *ret);
