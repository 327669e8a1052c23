/* Maps memory that another process gave, after it is sure that nobody can change or shorten it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Maps the first `size` bytes (more than 0) of a sealed memfd for reading; nothing is read, and a core dump leaves
 * it out. The descriptor stays the caller's, and may be closed. -EPERM: it is not sealed against writing, growing and
 * shrinking. -EMSGSIZE: it is shorter. Else an errno of mmap(). The caller ends it with munmap(). */
int sealed_map(int fd, uint64_t size, const void **ret);

/* Its size; a negative errno. */
int sealed_size(int fd, uint64_t *ret);
