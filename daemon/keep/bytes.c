#include "daemon/keep/bytes.h"

#include "proto/array.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that are allocated at first. */
#define BYTES_FIRST 4096

/* The length of a text that is NULL. */
#define NO_TEXT UINT64_MAX

void bytes_put(struct bytes_writer *writer, const void *bytes, size_t size)
{
    size_t needed;
    if (__builtin_add_overflow(writer->size, size, &needed) ||
        array_grow(&writer->bytes, &writer->capacity, needed, 1, BYTES_FIRST, SIZE_MAX) < 0) {
        writer->failed = true;
        return;
    }
    if (size > 0)
        memcpy(writer->bytes + writer->size, bytes, size);
    writer->size += size;
}

void bytes_put_number(struct bytes_writer *writer, uint64_t number)
{
    const uint64_t little = htole64(number);
    bytes_put(writer, &little, sizeof(little));
}

void bytes_put_text(struct bytes_writer *writer, const char *text)
{
    bytes_put_number(writer, text ? strlen(text) : NO_TEXT);
    if (text)
        bytes_put(writer, text, strlen(text));
}

void bytes_take(struct bytes_reader *reader, void *ret, size_t size)
{
    if (reader->failed || size > reader->left) {
        reader->failed = true;
        memset(ret, 0, size);
        return;
    }
    memcpy(ret, reader->bytes, size);
    reader->bytes += size;
    reader->left -= size;
}

uint64_t bytes_take_number(struct bytes_reader *reader, uint64_t most)
{
    uint64_t little;
    bytes_take(reader, &little, sizeof(little));
    const uint64_t number = le64toh(little);
    if (number <= most)
        return number;
    reader->failed = true;
    return 0;
}

size_t bytes_take_count(struct bytes_reader *reader, uint64_t most, size_t each)
{
    const uint64_t count = bytes_take_number(reader, most);
    if (count <= reader->left / each)
        return (size_t)count;
    reader->failed = true;
    return 0;
}

bool bytes_take_text(struct bytes_reader *reader, size_t most, char **ret)
{
    const uint64_t size = bytes_take_number(reader, UINT64_MAX);
    if (!reader->failed && size == NO_TEXT) {
        *ret = NULL;
        return true;
    }
    if (reader->failed || size > most || size > reader->left || memchr(reader->bytes, '\0', size)) {
        reader->failed = true;
        return false;
    }
    char *text = strndup((const char *)reader->bytes, size);
    if (!text) {
        reader->failed = true;
        return false;
    }
    reader->bytes += size;
    reader->left -= size;
    *ret = text;
    return true;
}
