#include "client/metadata.h"

#include "client/metadata_json.h"
#include "proto/gguf_value.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* The least that an entry takes: a key of one byte, and a value of one. */
#define ENTRY_BYTES_MIN 14u

/* Of an array, before its first element: their type, and how many there are. */
#define ARRAY_HEAD 12u

struct metadata {
    const uint8_t *bytes;
    size_t size;
    size_t n;
    rf_value *entries;
    char *text; /* NULL, or what the entries point into: the header is JSON */
};

/* What is left to be read. */
struct reader {
    const uint8_t *at;
    size_t left;
};

static uint64_t load(const uint8_t *data, size_t size)
{
    uint64_t value = 0;
    memcpy(&value, data, size);
    return le64toh(value);
}

static int skip(struct reader *reader, uint64_t size)
{
    if (size > reader->left)
        return -EBADMSG;
    reader->at += size;
    reader->left -= size;
    return 0;
}

/* A number of `size` bytes. */
static int take(struct reader *reader, size_t size, uint64_t *ret)
{
    const uint8_t *at = reader->at;
    if (skip(reader, size) < 0)
        return -EBADMSG;
    *ret = load(at, size);
    return 0;
}

static_assert(RF_U8 == (int)GGUF_U8 && RF_STRING == (int)GGUF_STRING && RF_F64 == (int)GGUF_F64,
              "rocmforge.h numbers types as the file does");

static int take_value(struct reader *reader, uint32_t type, unsigned depth, rf_value *ret);

/* Steps over an array's elements. */
static int skip_elements(struct reader *reader, uint32_t type, uint64_t count, unsigned depth)
{
    const size_t each = gguf_scalar_bytes(type);
    if (each > 0)
        return count > reader->left / each ? -EBADMSG : skip(reader, count * each);
    if (type != RF_STRING && type != RF_ARRAY)
        return -EBADMSG;
    int r = 0;
    if (type == RF_STRING) { /* a vocabulary has hundreds of thousands */
        uint64_t size;
        for (uint64_t i = 0; i < count && r == 0; i++)
            r = take(reader, GGUF_STRING_LENGTH, &size) < 0 ? -EBADMSG : skip(reader, size);
        return r;
    }
    for (uint64_t i = 0; i < count && r == 0; i++)
        r = take_value(reader, type, depth, &(rf_value){0});
    return r;
}

/* depth: of arrays that the value stands in. */
static int take_value(struct reader *reader, uint32_t type, unsigned depth, rf_value *ret)
{
    uint64_t size = gguf_scalar_bytes(type), element = 0;
    *ret = (rf_value){.type = type, .element_type = type, .count = 1};
    if (type == RF_STRING && take(reader, GGUF_STRING_LENGTH, &size) < 0)
        return -EBADMSG;
    if (type == RF_ARRAY) {
        if (depth == GGUF_NESTING_MAX || take(reader, 4, &element) < 0 || take(reader, 8, &ret->count) < 0)
            return -EBADMSG;
        ret->element_type = (uint32_t)element;
    }
    ret->data = reader->at;
    int r = type == RF_ARRAY                 ? skip_elements(reader, ret->element_type, ret->count, depth + 1)
            : size == 0 && type != RF_STRING ? -EBADMSG /* a type that there is none of */
                                             : skip(reader, size);
    ret->bytes = (uint64_t)(reader->at - (const uint8_t *)ret->data);
    return r;
}

static int take_entry(struct reader *reader, rf_value *ret)
{
    uint64_t key_size, type;
    if (take(reader, 8, &key_size) < 0)
        return -EBADMSG;
    const char *key = (const char *)reader->at;
    if (key_size == 0 || skip(reader, key_size) < 0 || take(reader, 4, &type) < 0 ||
        take_value(reader, (uint32_t)type, 0, ret) < 0)
        return -EBADMSG;
    ret->key = key;
    ret->key_size = (size_t)key_size;
    return 0;
}

static int read_json(const void *bytes, size_t size, struct metadata **ret)
{
    struct metadata *metadata = calloc(1, sizeof(*metadata));
    if (!metadata)
        return -ENOMEM;
    int r = metadata_json_read(bytes, size, &metadata->entries, &metadata->n, &metadata->text);
    if (r < 0)
        free(metadata);
    else
        *ret = metadata;
    return r;
}

int metadata_read(const void *bytes, size_t size, struct metadata **ret)
{
    if (metadata_is_json(bytes, size))
        return read_json(bytes, size, ret);
    struct reader reader = {bytes, size};
    uint64_t version, n_tensors, n;
    if (size < 4 || memcmp(bytes, "GGUF", 4) != 0 || skip(&reader, 4) < 0 || take(&reader, 4, &version) < 0 ||
        (version != 2 && version != 3) || take(&reader, 8, &n_tensors) < 0 || take(&reader, 8, &n) < 0 ||
        n > HEADER_KV_MAX || n > reader.left / ENTRY_BYTES_MIN)
        return -EBADMSG;
    struct metadata *metadata = calloc(1, sizeof(*metadata));
    rf_value *entries = calloc(n ? n : 1, sizeof(*entries));
    int r = metadata && entries ? 0 : -ENOMEM;
    for (uint64_t i = 0; i < n && r == 0; i++)
        r = take_entry(&reader, &entries[i]);
    if (r < 0) {
        free(entries);
        free(metadata);
        return r;
    }
    *metadata = (struct metadata){.bytes = bytes, .size = size, .n = (size_t)n, .entries = entries};
    *ret = metadata;
    return 0;
}

void metadata_free(struct metadata *metadata)
{
    if (!metadata)
        return;
    free(metadata->entries);
    free(metadata->text);
    free(metadata);
}

size_t metadata_count(const struct metadata *metadata)
{
    return metadata->n;
}

const rf_value *metadata_at(const struct metadata *metadata, size_t index)
{
    return &metadata->entries[index];
}

const rf_value *metadata_find(const struct metadata *metadata, const char *key)
{
    const size_t size = strlen(key);
    for (size_t i = 0; i < metadata->n; i++)
        if (metadata->entries[i].key_size == size && memcmp(metadata->entries[i].key, key, size) == 0)
            return &metadata->entries[i];
    return NULL;
}

int metadata_next(const struct metadata *metadata, const rf_value *array, uint64_t *position, rf_value *ret)
{
    /* The caller had both in its hands. */
    const uint8_t *begin = array->data;
    const uintptr_t first = (uintptr_t)metadata->bytes, at = (uintptr_t)begin;
    if (array->type != RF_ARRAY || at < first || at - first > metadata->size ||
        array->bytes > metadata->size - (at - first) || *position > array->bytes)
        return -EINVAL;
    struct reader reader = {begin + *position, (size_t)(array->bytes - *position)};
    if (reader.left == 0)
        return 0;
    rf_value element;
    if (take_value(&reader, array->element_type, 0, &element) < 0)
        return -EINVAL;
    *position = array->bytes - reader.left;
    *ret = element;
    return 1;
}
