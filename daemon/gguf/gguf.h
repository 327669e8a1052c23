/* Reads the header of a GGUF file.
 *
 * The file is untrusted. Every count, length and size is compared with the bytes that are left in the file before
 * memory is allocated for it. The parser takes at most a small multiple of the header's size. It does not use mmap. In
 * a header that gguf_read() returns every tensor has an aligned offset. Tensors may be in any order and may share
 * bytes. A tensor whose type has no known block size ends where the next one begins.
 *
 * Blocking; meant for a worker thread. */
#pragma once

#include "daemon/header/model_header.h"

#include <stdint.h>

#define GGUF_TYPE_MAX 65535u /* a larger type number in a tensor info is refused */

/* Parses the header of the file open at `fd`, which the caller still owns; the file position is neither used nor moved.
 * file_size: what fstat() returned. Returns 0 and a model that the caller frees with model_header_free(); -EBADMSG and
 * *ret_fault if the file is refused; -ENOMEM; -ENODATA if the file is now shorter than file_size; or the negative errno
 * of pread(). */
int gguf_read(int fd, uint64_t file_size, struct model_header **ret, struct header_fault *ret_fault);

/* Like gguf_read(), for one of several files whose headers are kept together. This header may have at most `most`
 * bytes. The headers of all files together may have HEADER_BYTES_MAX. */
int gguf_read_within(int fd, uint64_t file_size, uint64_t most, struct model_header **ret,
                     struct header_fault *ret_fault);

/* Allocates memory for the next header in advance, so that reading the header takes less time. Any thread; best called
 * when no client waits. */
void gguf_prepare(void);
