/* Durations as users type them: "90" or "90s", "10m", "2h", "1d". */
#pragma once

#include <stdint.h>

#define DURATION_SIZE 32
#define TTL_SIZE      (DURATION_SIZE + 16)

/* Reads a duration. Returns 0; -EINVAL: `text` is no duration, or is longer than 100 years. */
int duration_parse(const char *text, uint64_t *ret_seconds);

/* Writes a duration in the largest unit of which it is a whole multiple: "90s", "10m". Returns `text`. */
const char *duration_format(char text[DURATION_SIZE], double seconds);

/* When a model with this time to live is unloaded: "when idle for 10m", or for 0 "as soon as nobody uses it".
 * Returns `text`. */
const char *ttl_text(char text[TTL_SIZE], double seconds);
