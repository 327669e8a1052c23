/* The processor's caches, where a device reads memory that a processor has just written. Any thread. */
#pragma once

#include <stddef.h>

/* Starts writing these bytes from the calling processor's caches back to memory, and does not wait. A GPU reads
 * bytes that are only in a processor's own caches more slowly than those in memory. Uses CLWB on x86; does nothing on
 * processors without it, and on other architectures. */
void cpu_cache_write_back(const void *bytes, size_t n);
