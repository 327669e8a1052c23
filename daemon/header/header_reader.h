/* Reads the header of a GGUF file as far as it is needed, and returns its fields one after another. gguf.c knows what
 * the fields mean.
 *
 * The file is untrusted. A length is compared with the bytes that are left in the file. Memory grows only as bytes are
 * read, so a false length costs no memory.
 *
 * Functions that return an int return 0; -EBADMSG, with the fault set, if the file is refused; -ENOMEM; -ENODATA if the
 * file is now shorter than file_size; or the negative errno of pread(). After a failure, no further field may be read.
 *
 * Blocking; meant for a worker thread. One owner at a time. */
#pragma once

#include "daemon/header/fault.h"

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The part of the header that was read so far, and the position of the next field in it. Before the first call the
 * owner sets fd, file_size, most and fault, and the other fields are 0. The owner frees `bytes`, or keeps it. */
struct header_reader {
    int fd;             /* borrowed; its position is neither used nor moved */
    uint64_t file_size; /* what fstat() returned */
    uint64_t most;  /* bytes that the header may have: HEADER_BYTES_MAX, less the headers of the model's other files */
    uint8_t *bytes; /* moves when it grows: a pointer into it is valid until the next call that reads */
    size_t filled, capacity;
    size_t pos; /* at most `filled`, which is at most file_size */
    struct header_fault *fault;
};

/* Sets the fault: a sentence that says what is wrong, and the offset of the field. Returns -EBADMSG, which the caller
 * returns. */
int header_refuse(struct header_reader *r, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Allocates a first buffer for the next reader in advance, unless there is one. Else the kernel would have to find its
 * pages while the header is read, which takes much of the reading time. Any thread. */
void header_prepare(void);

/* Reads until the buffer has `size` bytes after the position. `field` is the offset for the fault if the file has fewer
 * bytes, or if they reach past `most`. */
int header_ensure(struct header_reader *r, uint64_t size, uint64_t field);

/* Read a number and move past it. */
int header_take_u32(struct header_reader *r, uint32_t *ret);
int header_take_u64(struct header_reader *r, uint64_t *ret);

/* Skips a string of at most `most` bytes and the length before it. A fault has the offset of the length, and calls the
 * string `what`. */
int header_take_string(struct header_reader *r, const char *what, uint64_t most, size_t *ret_size);

/* Skips `count` strings of any length that follow each other. */
int header_skip_strings(struct header_reader *r, const char *what, uint64_t count);

/* Frees the memory after the position. No field may be read after this call. */
void header_trim(struct header_reader *r);

/* Decode a number of the file, at any alignment. */
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
