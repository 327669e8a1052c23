/* Writes and reads numbers and texts as a run of bytes, for descriptions that outlive the process.
 *
 * The reader trusts nothing: each length is compared with what is left. After the first error all further calls fail
 * too, so only the end has to be checked. Numbers are little-endian, of 64 bits. Any thread; one owner at a time. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes_writer {
    uint8_t *bytes; /* the owner frees it */
    size_t size;
    size_t capacity;
    bool failed; /* there was no memory */
};

void bytes_put(struct bytes_writer *writer, const void *bytes, size_t size);
void bytes_put_number(struct bytes_writer *writer, uint64_t number);

/* A text of any length; NULL is different from "". */
void bytes_put_text(struct bytes_writer *writer, const char *text);

struct bytes_reader {
    const uint8_t *bytes; /* borrowed */
    size_t left;
    bool failed; /* the bytes ended too early, or a value was out of its bounds */
};

/* Copies `size` bytes; zeros after an error. */
void bytes_take(struct bytes_reader *reader, void *ret, size_t size);

/* A number of at most `most`; 0 after an error. */
uint64_t bytes_take_number(struct bytes_reader *reader, uint64_t most);

/* The number of elements that follow, each of at least `each` bytes; 0 after an error. */
size_t bytes_take_count(struct bytes_reader *reader, uint64_t most, size_t each);

/* A text of at most `most` bytes, without a NUL in it. Returns false after an error. *ret is NULL if NULL was put; the
 * caller frees it. */
bool bytes_take_text(struct bytes_reader *reader, size_t most, char **ret);
