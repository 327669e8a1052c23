/* Maps memory that another process passed as a descriptor, after checking that no process can change or shorten it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Maps the first `size` bytes of a sealed memfd for reading. `size` is more than 0. Nothing is read, and core dumps do
 * not contain the mapping. The caller keeps the descriptor and may close it; it ends the mapping with munmap().
 *
 * -EPERM: the descriptor is not sealed against writing, growing and shrinking. -EMSGSIZE: it has fewer bytes. Or a
 * negative errno of fstat() or mmap(). */
int sealed_map(int fd, uint64_t size, const void **ret);

/* Maps the whole memfd, in the same way, and writes its size in bytes to *ret_size. An empty one is -EMSGSIZE. */
int sealed_map_whole(int fd, const void **ret, uint64_t *ret_size);
