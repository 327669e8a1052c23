/* Maps memory that another process passed as a descriptor, after checking that no process can change or shorten it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Maps the first `size` bytes of a sealed memfd for reading. `size` is more than 0. Nothing is read, and core dumps do
 * not contain the mapping. The caller keeps the descriptor and may close it; it ends the mapping with munmap().
 *
 * -EPERM: the descriptor is not sealed against writing, growing and shrinking. -EMSGSIZE: it has fewer bytes. Or a
 * negative errno of mmap(). */
int sealed_map(int fd, uint64_t size, const void **ret);

/* Writes the size of the file behind `fd`, in bytes. Returns 0 or a negative errno. */
int sealed_size(int fd, uint64_t *ret);
