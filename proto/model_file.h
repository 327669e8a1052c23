/* The name of a model, as it is derived from the path of its file. The daemon and the client library both use it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* The most bytes that a model's name has, without a NUL. */
#define MODEL_NAME_MAX 127u

/* Returns 0 for a valid name: 1 to MODEL_NAME_MAX letters, digits and . _ - : @ +, and the first of them is not '-',
 * because a command line would take the name for an option. Else -EINVAL. */
int model_name_check(const char *name);

/* Derives a valid name from a path: its last part, without ".gguf" or ".safetensors", with '_' for each character that
 * a name cannot have there. Of "model.safetensors" and "model-00001-of-00003.safetensors", the folder's name; in
 * Hugging Face's cache, the model's. The path may be NULL. */
void model_name_derive(const char *path, char name[MODEL_NAME_MAX + 1]);

/* Makes the name of a whole model that of one of its parts: "m" becomes "m.tp0of2". If that would be too long, the end
 * of the whole model's name is left out. With `size` 0 or 1 nothing changes. */
void model_name_part(char name[MODEL_NAME_MAX + 1], unsigned rank, unsigned size);

/* If `path` is a folder, derives a name from the folder's; of "..", for instance, it is looked up. If it is a symbolic
 * link, derives a name from the link's: what it leads to may be called by a digest. Not so for links to descriptors,
 * "/proc/self/fd/3". Returns whether it is one of both; `name` is only set then. Blocking. */
bool model_name_of_link(const char *path, char name[MODEL_NAME_MAX + 1]);
