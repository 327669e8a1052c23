/* Loads and pins every model in a folder, one after the other, in order of their names: at start, and again when asked.
 * The entries may be files or symbolic links. Hidden entries are ignored. Entries that are no models, and models that
 * cannot be loaded, are logged and skipped.
 *
 * Loop thread only; the folder is read on a worker. */
#pragma once

#include "daemon/load/load.h"

struct preload;

/* folder: borrowed. layout: in which the models are in memory, one of layout_names; NULL: as in their files. 0 or a
 * negative errno. */
int preload_new(struct loads *loads, const char *folder, const char *layout, struct preload **ret);

/* Begins to load the models in the folder. If this is under way already, it begins again when it is over. */
void preload_look(struct preload *preload);

/* The number of models that could not be loaded, since the last preload_look() began. A folder that cannot be read
 * counts as one. NULL: 0. */
unsigned preload_failed(const struct preload *preload);

/* No load is under way any more. NULL is fine. */
void preload_free(struct preload *preload);
