/* The bytes of a GGUF file's header, read as they are asked for, and the fields in them, one after the other. What the
 * fields mean is gguf.c's business.
 *
 * The file is untrusted: a length is held against what is left of the file, and memory is taken in step with what was
 * read, so that a length alone costs nothing.
 *
 * All that return an int return 0; -EBADMSG, with the fault set, if the file is refused; -ENOMEM; or the negative errno
 * of pread(), where -ENODATA says that the file is shorter than file_size by now. A reader that failed is good for no
 * further field.
 *
 * Blocking; meant for a worker thread. One owner at a time. */
#pragma once

#include "daemon/gguf/fault.h"

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The header as far as it was read, from the file's first byte on, and the position of the next field in it. Begins
 * with fd, file_size, most and fault set, and zeros. `bytes` is for whoever owns the reader to free(), or to keep. */
struct header_reader {
    int fd;             /* borrowed; its position is neither used nor moved */
    uint64_t file_size; /* as fstat() said */
    uint64_t most;      /* bytes that the header may have: GGUF_HEADER_MAX, or what other files' have left of it */
    uint8_t *bytes;     /* moves as it grows: pointers into it hold until the next byte is asked for */
    size_t filled, capacity;
    size_t pos; /* at most `filled`, which is at most file_size */
    struct gguf_fault *fault;
};

/* Sets the fault: what is wrong, as a sentence, and the offset of the field. Returns -EBADMSG, for the caller to
 * return. */
int header_refuse(struct header_reader *r, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Has a first buffer ready for the next reader, unless there is one: half of the time that a header takes would go into
 * the kernel's finding pages for it. Any thread. */
void header_prepare(void);

/* Reads until `size` bytes after the position are there. `field` is the offset to blame if the file has no such bytes,
 * or if they reach past `most`. */
int header_ensure(struct header_reader *r, uint64_t size, uint64_t field);

/* Reads a number and steps over it. */
int header_take_u32(struct header_reader *r, uint32_t *ret);
int header_take_u64(struct header_reader *r, uint64_t *ret);

/* Steps over a string of at most `most` bytes, which stands behind its length. It is blamed at that, where the field
 * begins, and called `what`. */
int header_take_string(struct header_reader *r, const char *what, uint64_t most, size_t *ret_size);

/* Steps over `count` strings of any length, one behind the other. */
int header_skip_strings(struct header_reader *r, const char *what, uint64_t count);

/* Gives memory back that was filled ahead of the position. No further field is taken after it. */
void header_trim(struct header_reader *r);

/* A number as it stands in the file, at any alignment. */
static inline uint32_t header_load_u32(const void *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof value);
    return le32toh(value);
}

static inline uint64_t header_load_u64(const void *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof value);
    return le64toh(value);
}
