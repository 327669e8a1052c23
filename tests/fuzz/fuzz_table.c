/* Fuzzes the check of tensor tables: a table that passes can be used, and is what table_build() makes of its tensors.
 */
#include "proto/table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Aligned as promised, and exactly as long. */
    void *table = malloc(size ? size : 1);
    assert(table);
    memcpy(table, data, size);
    struct table_header *header = table;
    /* The magic and the size are given, so that the rest is reached. */
    if (size >= sizeof(*header)) {
        memcpy(header->magic, TABLE_MAGIC, sizeof(header->magic));
        header->size = size;
    }
    if (table_check(table, size) < 0) {
        free(table);
        return 0;
    }
    size_t n = (size_t)header->n_tensors;
    struct table_tensor *tensors = calloc(n ? n : 1, sizeof(*tensors));
    assert(tensors);
    for (size_t i = 0; i < n; i++) {
        const struct table_entry *entry = &table_entries(table)[i];
        assert(entry->offset + entry->bytes + entry->padding <= header->arena_bytes);
        assert(table_find(table, table_name(table, entry)) == entry);
        tensors[i] = (struct table_tensor){
            .name = table_name(table, entry),
            .offset = entry->offset,
            .bytes = entry->bytes,
            .padding = entry->padding,
            .type_name = entry->type_name,
            .n_dims = entry->n_dims,
            .type = entry->type,
            .form = entry->form,
            .flags = entry->flags,
        };
        memcpy(tensors[i].shape, entry->shape, sizeof(entry->shape));
    }
    void *built;
    size_t built_size;
    int r = table_build(tensors, n, header->arena_bytes, &built, &built_size);
    assert(r == 0 && built_size == size);
    for (size_t i = 0; i < n; i++)
        assert(memcmp(&table_entries(built)[i], &table_entries(table)[i], sizeof(struct table_entry)) == 0);
    free(built);
    free(tensors);
    free(table);
    return 0;
}
