/* Loads and pins every model that is linked in a folder, in order of name, one after the other: at start, and again
 * when asked. A model is what has a name that ends in .gguf, and does not begin with a dot. One that cannot be loaded
 * is logged and skipped.
 *
 * Loop thread only; the folder is read on a worker. */
#pragma once

#include "daemon/load/load.h"

struct preload;

/* `folder` is borrowed. 0 or a negative errno. */
int preload_new(struct loads *loads, const char *folder, struct preload **ret);

/* Looks at the folder, now or as soon as the last look is over. */
void preload_look(struct preload *preload);

/* How many of the folder's models could not be loaded, when it was looked at last. NULL: 0. */
unsigned preload_failed(const struct preload *preload);

/* NULL is fine. No load is under way any more. */
void preload_free(struct preload *preload);
