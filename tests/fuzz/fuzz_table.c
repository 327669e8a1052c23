/* Fuzzes the checks of tensor tables. Whatever the bytes are, no check reads outside the table, and a tensor that is
 * given out lies inside the model's memory. A table without a fault is what table_build() makes of its tensors. */
#include "proto/table.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_built(const void *table, size_t size, const struct table_tensor *tensors, size_t n)
{
    void *built;
    size_t built_size;
    int r = table_build(tensors, n, ((const struct table_header *)table)->arena_bytes, &built, &built_size);
    assert(r == 0 && built_size == size && memcmp(built, table, size) == 0);
    free(built);
}

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
    bool good = true;
    size_t name = sizeof(*header) + n * (sizeof(struct table_entry) + sizeof(uint32_t));
    for (size_t i = 0; i < n && good; i++) {
        const struct table_entry *entry = table_entry(table, i), *found = NULL;
        if (!entry) {
            good = false;
            break;
        }
        assert(entry->offset + entry->bytes + entry->padding <= header->arena_bytes);
        const int r = table_find(table, table_name(table, entry), &found);
        assert(r == 0 || r == -ENOENT || r == -EBADMSG);
        if (r == 0)
            assert(strcmp(table_name(table, found), table_name(table, entry)) == 0);
        good = r == 0 && found == entry && entry->name == name;
        name += strlen(table_name(table, entry)) + 1;
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
    if (good && name == size)
        check_built(table, size, tensors, n);
    free(tensors);
    free(table);
    return 0;
}
