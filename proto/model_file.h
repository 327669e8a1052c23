/* What the path of a model's file says: what the model is called, and which other files belong to it. The daemon goes
 * by that, and so does the library, which opens files for it. */
#pragma once

#include <stddef.h>

/* Bytes of a model's name. */
#define MODEL_NAME_MAX 127u

/* Returns 0 for a valid name: 1 to MODEL_NAME_MAX letters, digits and . _ - : @ +, and the first of them is not '-',
 * because a command line would take the name for an option. Else -EINVAL. */
int model_name_check(const char *name);

/* Derives a valid name from a path: its last part, without ".gguf", with '_' for each character that a name cannot have
 * there. The path may be NULL. */
void model_name_derive(const char *path, char name[MODEL_NAME_MAX + 1]);

/* The number of files of a split model whose first one has this path, "...-00001-of-00003.gguf"; 1 for any other path.
 * At most FRAME_FDS_MAX: as many as a message can carry. */
unsigned shard_count(const char *path);

/* Which of a split model's files this path is, from 0 on: 1 for "...-00002-of-00003.gguf"; 0 for any other path. */
unsigned shard_index(const char *path);

/* Writes the path of one of them, from 0 on: `n` is shard_count(), `path` the first one's. -ENAMETOOLONG. */
int shard_path(const char *path, unsigned index, unsigned n, char *dst, size_t size);
