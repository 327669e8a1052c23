#include "proto/table.h"

#include <errno.h>
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
    for (size_t i = 0; i < n; i++)
        if (__builtin_add_overflow(size, strlen(tensors[i].name) + 1, &size))
            return -EOVERFLOW;

    char *table = calloc(1, size);
    if (!table)
        return -ENOMEM;
    struct table_header *header = (struct table_header *)table;
    *header = (struct table_header){.size = size, .n_tensors = n, .arena_bytes = arena_bytes};
    memcpy(header->magic, TABLE_MAGIC, sizeof(header->magic));

    struct table_entry *entries = (struct table_entry *)(header + 1);
    uint32_t *index = (uint32_t *)(entries + n);
    size_t name = names;
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
    for (uint64_t i = 0; i < n; i++) {
        if (entry_check(&entries[i], header->arena_bytes) < 0 || entries[i].name != name)
            return -EBADMSG;
        const char *end = memchr((const char *)table + name, '\0', size - name);
        if (!end)
            return -EBADMSG;
        name = (size_t)(end - (const char *)table) + 1;
    }
    if (name != size)
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
