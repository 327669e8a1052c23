/* Lengths of time as they are typed: "90" or "90s", "10m", "2h", "1d". */
#pragma once

#include <stdint.h>

#define DURATION_SIZE 32
#define TTL_SIZE      (DURATION_SIZE + 16)

/* Returns 0, or -EINVAL for anything else, and for more than a century. */
int duration_parse(const char *text, uint64_t *ret_seconds);

/* Writes it with the largest unit that loses nothing: "90s", "10m". Returns `text`. */
const char *duration_format(char text[DURATION_SIZE], double seconds);

/* "when idle for 10m"; of 0 seconds "as soon as nobody uses it": when a model with this time to live is unloaded.
 * Returns `text`. */
const char *ttl_text(char text[TTL_SIZE], double seconds);
