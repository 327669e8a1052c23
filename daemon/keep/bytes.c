#include "daemon/keep/bytes.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

/* The length of a text that is NULL. */
#define NO_TEXT UINT64_MAX

void bytes_put(struct bytes_writer *writer, const void *bytes, size_t size)
{
    if (size > writer->capacity - writer->size) {
        size_t capacity;
        if (__builtin_add_overflow(writer->size, size, &capacity) || capacity > SIZE_MAX / 2)
            writer->failed = true;
        capacity = writer->failed ? 0 : 2 * capacity;
        uint8_t *grown = writer->failed ? NULL : realloc(writer->bytes, capacity);
        if (!grown) {
            writer->failed = true;
            return;
        }
        writer->bytes = grown;
        writer->capacity = capacity;
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
