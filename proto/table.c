#include "proto/table.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Bytes that a tensor takes in the table, without its name. */
#define TENSOR_SIZE (sizeof(struct table_entry) + sizeof(uint32_t))

static const struct table_entry *table_entries(const void *table)
{
    return (const struct table_entry *)((const char *)table + sizeof(struct table_header));
}

static const uint32_t *table_index(const void *table)
{
    const struct table_header *header = table;
    return (const uint32_t *)(table_entries(table) + header->n_tensors);
}

const char *table_name(const void *table, const struct table_entry *entry)
{
    return (const char *)table + entry->name;
}

/* Where the strides begin in a table of n_tensors tensors. */
static size_t strides_begin(uint64_t n_tensors)
{
    const size_t end = sizeof(struct table_header) + (size_t)n_tensors * TENSOR_SIZE;
    return (end + sizeof(uint64_t) - 1) & ~(sizeof(uint64_t) - 1);
}

static const struct table_strides *strides_of(const void *table)
{
    return (const void *)((const char *)table + strides_begin(((const struct table_header *)table)->n_tensors));
}

const uint64_t *table_strides(const void *table, const struct table_entry *entry)
{
    return entry->flags & TABLE_STRIDED ? strides_of(table)[entry->flags >> TABLE_STRIDES_SHIFT].of : NULL;
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
    size_t n_strided = 0;
    for (size_t i = 0; i < n; i++)
        n_strided += tensors[i].strides != NULL;
    if (n_strided > TABLE_STRIDES_MAX)
        return -EOVERFLOW;
    if (n_strided > 0 && __builtin_add_overflow(strides_begin(n), n_strided * sizeof(struct table_strides), &names))
        return -EOVERFLOW;
    size = names;
    for (size_t i = 0; i < n; i++)
        if (__builtin_add_overflow(size, strlen(tensors[i].name) + 1, &size))
            return -EOVERFLOW;

    char *table = calloc(1, size);
    if (!table)
        return -ENOMEM;
    struct table_header *header = (struct table_header *)table;
    *header = (struct table_header){
        .size = size, .n_tensors = (uint32_t)n, .n_strided = (uint32_t)n_strided, .arena_bytes = arena_bytes};
    memcpy(header->magic, TABLE_MAGIC, sizeof(header->magic));

    struct table_entry *entries = (struct table_entry *)(header + 1);
    uint32_t *index = (uint32_t *)(entries + n);
    struct table_strides *strides = (struct table_strides *)(table + strides_begin(n));
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
    const uint64_t n = header->n_tensors, n_strided = header->n_strided;
    if (n > (size - sizeof(*header)) / TENSOR_SIZE || n_strided > TABLE_STRIDES_MAX)
        return -EBADMSG;
    const size_t names = n_strided > 0 ? strides_begin(n) + (size_t)n_strided * sizeof(struct table_strides)
                                       : sizeof(*header) + (size_t)n * TENSOR_SIZE;
    if (n == 0)
        return size == names ? 0 : -EBADMSG;
    /* The first name begins where the names do. If the last byte is NUL, every name that begins inside the table also
     * ends there. */
    return size > names && table_entries(table)->name == names && ((const char *)table)[size - 1] == '\0' ? 0
                                                                                                          : -EBADMSG;
}

static bool name_is_inside(const struct table_header *header, const struct table_entry *entry)
{
    return entry->name >= table_entries(header)->name && entry->name < header->size;
}

static bool place_is_inside(const struct table_entry *entry, uint64_t arena_bytes)
{
    return entry->offset <= arena_bytes && entry->bytes <= arena_bytes - entry->offset &&
           entry->padding <= arena_bytes - entry->offset - entry->bytes;
}

static bool rest_is_zero(const struct table_entry *entry)
{
    static const char zeros[TABLE_TYPE_SIZE];
    for (uint32_t i = entry->n_dims; i < TABLE_DIMS_MAX; i++)
        if (entry->shape[i] != 0)
            return false;
    const size_t length = strnlen(entry->type_name, TABLE_TYPE_SIZE - 1);
    return memcmp(entry->type_name + length, zeros, TABLE_TYPE_SIZE - length) == 0;
}

static bool strides_are_right(const void *table, const struct table_entry *entry)
{
    const uint32_t low = entry->flags & ((1u << TABLE_STRIDES_SHIFT) - 1);
    const uint32_t which = entry->flags >> TABLE_STRIDES_SHIFT;
    if ((low & ~(TABLE_VIEW | TABLE_STRIDED | TABLE_MEMBER)) != 0)
        return false;
    if (!(low & TABLE_STRIDED))
        return which == 0;
    if (which >= ((const struct table_header *)table)->n_strided)
        return false;
    const uint64_t *strides = table_strides(table, entry);
    for (uint32_t i = 0; i < TABLE_DIMS_MAX; i++)
        if (strides[i] > INT64_MAX || (i >= entry->n_dims && strides[i] != 0))
            return false;
    return true;
}

const struct table_entry *table_entry(const void *table, size_t index)
{
    const struct table_header *header = table;
    const struct table_entry *entry = &table_entries(table)[index];
    if (!name_is_inside(header, entry) || !place_is_inside(entry, header->arena_bytes) ||
        entry->n_dims > TABLE_DIMS_MAX || !rest_is_zero(entry) || !strides_are_right(table, entry))
        return NULL;
    return entry;
}

int table_find(const void *table, const char *name, const struct table_entry **ret)
{
    const struct table_header *header = table;
    const uint32_t *index = table_index(table);
    uint64_t low = 0, high = header->n_tensors;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (index[middle] >= header->n_tensors)
            return -EBADMSG;
        const struct table_entry *entry = &table_entries(table)[index[middle]];
        if (!name_is_inside(header, entry))
            return -EBADMSG;
        const int order = strcmp(name, table_name(table, entry));
        if (order == 0) {
            entry = table_entry(table, index[middle]);
            if (!entry)
                return -EBADMSG;
            *ret = entry;
            return 0;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -ENOENT;
}
