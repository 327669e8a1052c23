/* Fuzzes the checks of tensor tables. Whatever the bytes are, no check reads outside the table, and a tensor that is
 * given out lies inside the model's memory. A table without a fault is what table_build() makes of its tensors. */
#include "proto/table.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whether something stands between the index and the strides. */
static bool padded(const char *table, size_t names)
{
    for (size_t at = names; at % 8 != 0; at++)
        if (table[at] != 0)
            return true;
    return false;
}

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
    uint32_t n_strided = 0;
    const size_t names = sizeof(*header) + n * (sizeof(struct table_entry) + sizeof(uint32_t));
    const size_t first = n > 0 ? (size_t)((const struct table_entry *)(header + 1))->name : names;
    size_t name = first;
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
        good = r == 0 && found == entry && entry->name == name &&
               (!table_strides(table, entry) || entry->flags >> TABLE_STRIDES_SHIFT == n_strided);
        name += strlen(table_name(table, entry)) + 1;
        n_strided += table_strides(table, entry) != NULL;
        tensors[i] = (struct table_tensor){
            .name = table_name(table, entry),
            .offset = entry->offset,
            .bytes = entry->bytes,
            .padding = entry->padding,
            .type_name = entry->type_name,
            .n_dims = entry->n_dims,
            .type = entry->type,
            .form = entry->form,
            .flags = entry->flags & (TABLE_VIEW | TABLE_MEMBER),
            .strides = table_strides(table, entry),
        };
        memcpy(tensors[i].shape, entry->shape, sizeof(entry->shape));
    }
    /* Nothing but strides of tensors stands before the names. */
    const size_t behind = (names + 7) / 8 * 8 + n_strided * sizeof(struct table_strides);
    if (good && name == size && (n == 0 || first == (n_strided > 0 ? behind : names)) &&
        (n_strided == 0 || !padded(table, names)))
        check_built(table, size, tensors, n);
    free(tensors);
    free(table);
    return 0;
}
