/* The processor's caches, where a device reads memory that a processor has just written. Any thread. */
#pragma once

#include <stddef.h>

/* Has the processor that wrote these bytes write them back to memory, and go on at once. A device gets them then as
 * fast as any others; those that are still in a processor's own caches, and nowhere else, it has been seen to get at a
 * third of that. Does nothing where the processor has no way to (x86: CLWB; others: nothing known). */
void cpu_cache_write_back(const void *bytes, size_t n);
