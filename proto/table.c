#include "proto/table.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that a tensor takes in the table, without its name. */
#define TENSOR_SIZE (sizeof(struct table_entry) + sizeof(uint32_t))

static const uint32_t *table_index(const void *table)
{
    const struct table_header *header = table;
    return (const uint32_t *)(table_entries(table) + header->n_tensors);
}

const struct table_entry *table_entries(const void *table)
{
    return (const struct table_entry *)((const char *)table + sizeof(struct table_header));
}

const char *table_name(const void *table, const struct table_entry *entry)
{
    return (const char *)table + entry->name;
}

/* Where the strides begin behind names that end there. */
static size_t strides_begin(size_t names_end)
{
    return (names_end + sizeof(uint64_t) - 1) & ~(sizeof(uint64_t) - 1);
}

const uint64_t *table_strides(const void *table, const struct table_entry *entry)
{
    if (!(entry->flags & TABLE_STRIDED))
        return NULL;
    const struct table_header *header = table;
    const struct table_entry *entries = table_entries(table);
    /* They begin behind the last name. */
    const struct table_entry *last = &entries[header->n_tensors - 1];
    const size_t names_end = last->name + strlen(table_name(table, last)) + 1;
    const struct table_strides *strides = (const void *)((const char *)table + strides_begin(names_end));
    return strides[entry->flags >> TABLE_STRIDES_SHIFT].of;
}

static int index_compare(const void *a, const void *b, void *tensors)
{
    const struct table_tensor *all = tensors;
    return strcmp(all[*(const uint32_t *)a].name, all[*(const uint32_t *)b].name);
}

int table_build(const struct table_tensor *tensors, size_t n, uint64_t arena_bytes, void **ret, size_t *ret_size)
{
    size_t names, size;
    if (n > UINT32_MAX || __builtin_mul_overflow(n, TENSOR_SIZE, &names) ||
        __builtin_add_overflow(names, sizeof(struct table_header), &names))
        return -EOVERFLOW;
    size = names;
    size_t n_strided = 0;
    for (size_t i = 0; i < n; i++) {
        n_strided += tensors[i].strides != NULL;
        if (__builtin_add_overflow(size, strlen(tensors[i].name) + 1, &size))
            return -EOVERFLOW;
    }
    const size_t strides_at = strides_begin(size);
    if (n_strided > TABLE_STRIDES_MAX || strides_at < size)
        return -EOVERFLOW;
    if (n_strided > 0 && __builtin_add_overflow(strides_at, n_strided * sizeof(struct table_strides), &size))
        return -EOVERFLOW;

    char *table = calloc(1, size);
    if (!table)
        return -ENOMEM;
    struct table_header *header = (struct table_header *)table;
    *header = (struct table_header){.size = size, .n_tensors = n, .arena_bytes = arena_bytes};
    memcpy(header->magic, TABLE_MAGIC, sizeof(header->magic));

    struct table_entry *entries = (struct table_entry *)(header + 1);
    uint32_t *index = (uint32_t *)(entries + n);
    struct table_strides *strides = (struct table_strides *)(table + strides_at);
    size_t name = names;
    uint32_t strided = 0;
    for (size_t i = 0; i < n; i++) {
        const struct table_tensor *tensor = &tensors[i];
        entries[i] = (struct table_entry){
            .name = name,
            .offset = tensor->offset,
            .bytes = tensor->bytes,
            .padding = tensor->padding,
            .n_dims = tensor->n_dims,
            .type = tensor->type,
            .form = tensor->form,
            .flags = tensor->flags,
        };
        if (tensor->strides) {
            memcpy(strides[strided].of, tensor->strides, tensor->n_dims * sizeof(uint64_t));
            entries[i].flags |= TABLE_STRIDED | strided++ << TABLE_STRIDES_SHIFT;
        }
        for (uint32_t k = 0; k < tensor->n_dims && k < TABLE_DIMS_MAX; k++)
            entries[i].shape[k] = tensor->shape[k];
        if (tensor->type_name)
            memcpy(entries[i].type_name, tensor->type_name, strnlen(tensor->type_name, TABLE_TYPE_SIZE - 1));
        index[i] = (uint32_t)i;
        size_t length = strlen(tensor->name) + 1;
        memcpy(table + name, tensor->name, length);
        name += length;
    }
    qsort_r(index, n, sizeof(*index), index_compare, (void *)tensors);
    *ret = table;
    *ret_size = size;
    return 0;
}

static int entry_check(const struct table_entry *entry, uint64_t arena_bytes)
{
    if (entry->offset > arena_bytes || entry->bytes > arena_bytes - entry->offset ||
        entry->padding > arena_bytes - entry->offset - entry->bytes || entry->n_dims > TABLE_DIMS_MAX)
        return -EBADMSG;
    for (uint32_t i = entry->n_dims; i < TABLE_DIMS_MAX; i++)
        if (entry->shape[i] != 0)
            return -EBADMSG;
    static const char zeros[TABLE_TYPE_SIZE];
    const size_t length = strnlen(entry->type_name, TABLE_TYPE_SIZE - 1);
    return memcmp(entry->type_name + length, zeros, TABLE_TYPE_SIZE - length) == 0 ? 0 : -EBADMSG;
}

/* The strides behind names that end at `name`, of so many entries. */
static int strides_check(const void *table, size_t size, size_t name, uint64_t n_strided)
{
    const size_t at = strides_begin(name);
    if (n_strided == 0)
        return name == size ? 0 : -EBADMSG;
    if (at < name || at > size || (size - at) / sizeof(struct table_strides) != n_strided ||
        (size - at) % sizeof(struct table_strides) != 0)
        return -EBADMSG;
    for (; name < at; name++)
        if (((const char *)table)[name] != '\0')
            return -EBADMSG;
    const struct table_entry *entries = table_entries(table);
    const uint64_t n = ((const struct table_header *)table)->n_tensors;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t *strides = table_strides(table, &entries[i]);
        for (uint32_t k = 0; strides && k < TABLE_DIMS_MAX; k++)
            if (strides[k] > INT64_MAX || (k >= entries[i].n_dims && strides[k] != 0))
                return -EBADMSG;
    }
    return 0;
}

/* Flags of an entry before which so many have strides. */
static bool flags_right(uint32_t flags, uint64_t n_strided)
{
    const uint32_t low = flags & ((1u << TABLE_STRIDES_SHIFT) - 1);
    return (low & ~(TABLE_VIEW | TABLE_STRIDED)) == 0 &&
           flags >> TABLE_STRIDES_SHIFT == (flags & TABLE_STRIDED ? n_strided : 0);
}

int table_check(const void *table, size_t size)
{
    const struct table_header *header = table;
    if (size < sizeof(*header) || (uintptr_t)table % _Alignof(struct table_header) != 0 ||
        memcmp(header->magic, TABLE_MAGIC_ANY, sizeof(TABLE_MAGIC_ANY) - 1) != 0)
        return -EBADMSG;
    if (memcmp(header->magic, TABLE_MAGIC, sizeof(header->magic)) != 0)
        return -EPROTONOSUPPORT;
    if (header->size != size)
        return -EBADMSG;
    uint64_t n = header->n_tensors;
    if (n > UINT32_MAX || n > (size - sizeof(*header)) / TENSOR_SIZE)
        return -EBADMSG;

    /* Each name must begin where the one before it ends. So this loop is linear in `size`, even for a malicious table.
     */
    const struct table_entry *entries = table_entries(table);
    size_t name = sizeof(*header) + (size_t)n * TENSOR_SIZE;
    uint64_t n_strided = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (entry_check(&entries[i], header->arena_bytes) < 0 || entries[i].name != name ||
            !flags_right(entries[i].flags, n_strided))
            return -EBADMSG;
        n_strided += (entries[i].flags & TABLE_STRIDED) != 0;
        const char *end = memchr((const char *)table + name, '\0', size - name);
        if (!end)
            return -EBADMSG;
        name = (size_t)(end - (const char *)table) + 1;
    }
    if (strides_check(table, size, name, n_strided) < 0)
        return -EBADMSG;

    /* If the names are in strictly ascending order, no entry is in the index twice. So every entry is in it. */
    const uint32_t *index = table_index(table);
    for (uint64_t i = 0; i < n; i++) {
        if (index[i] >= n)
            return -EBADMSG;
        if (i > 0 && strcmp(table_name(table, &entries[index[i - 1]]), table_name(table, &entries[index[i]])) >= 0)
            return -EBADMSG;
    }
    return 0;
}

const struct table_entry *table_find(const void *table, const char *name)
{
    const struct table_header *header = table;
    const struct table_entry *entries = table_entries(table);
    const uint32_t *index = table_index(table);
    uint64_t low = 0, high = header->n_tensors;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const struct table_entry *entry = &entries[index[middle]];
        int order = strcmp(name, table_name(table, entry));
        if (order == 0)
            return entry;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}
