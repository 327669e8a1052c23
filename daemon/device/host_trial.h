/* Which way to fill memory files is quicker on this machine, by trying both. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Provides and fills a range of a shared, writable mapping of a memory file. Any thread, several at a time. 0 or a
 * negative errno: -EINVAL if the kernel cannot provide pages before they are written; it is older than Linux 5.14. */
int host_map_fill(uint8_t *mapping, uint64_t offset, const void *data, size_t size);

/* Whether `workers` threads that fill a mapping at the same time are clearly quicker than threads that write by turns.
 * Takes a few hundredths of a second. Blocks. With few threads it is not tried, and false. */
bool host_map_is_quicker(unsigned workers);
