/* What the client reads beside a model's files, because the daemon may have no right to. */
#pragma once

#include <stdint.h>

/* Reads the numbers of attention heads from config.json: in the folder at `path`, or in that of the file at `path`.
 * Returns 0, or a negative errno if they are not there. */
int config_heads(const char *path, uint32_t *ret_heads, uint32_t *ret_kv_heads);
