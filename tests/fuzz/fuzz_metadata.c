/* Fuzzes the library's reader of metadata: any bytes are either refused, or every entry and element lies inside them.
 */
#include "client/metadata.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_inside(const uint8_t *begin, size_t size, const void *data, uint64_t bytes)
{
    const uint8_t *at = data;
    assert(at >= begin && at <= begin + size && bytes <= (uint64_t)(begin + size - at));
}

/* The elements of an array, and theirs: they are as many as it says, and fill it. */
static void check_array(const struct metadata *metadata, const uint8_t *begin, size_t size, const rf_value *array)
{
    rf_value element;
    uint64_t position = 0, n = 0, before;
    int r;
    while (before = position, (r = metadata_next(metadata, array, &position, &element)) > 0) {
        assert(position > before && position <= array->bytes);
        assert(element.type == array->element_type && !element.key);
        check_inside((const uint8_t *)array->data, array->bytes, element.data, element.bytes);
        check_inside(begin, size, element.data, element.bytes);
        if (element.type == RF_ARRAY)
            check_array(metadata, begin, size, &element);
        n++;
    }
    assert(r == 0 && n == array->count && position == array->bytes);
    position = array->bytes + 1;
    assert(metadata_next(metadata, array, &position, &element) == -EINVAL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = malloc(size ? size : 1); /* exactly as long */
    assert(bytes);
    memcpy(bytes, data, size);
    struct metadata *metadata = NULL;
    int r = metadata_read(bytes, size, &metadata);
    if (r < 0) {
        assert(r == -EBADMSG && !metadata);
        free(bytes);
        return 0;
    }
    for (size_t i = 0; i < metadata_count(metadata); i++) {
        const rf_value *value = metadata_at(metadata, i);
        uint64_t u;
        int64_t n;
        double d;
        assert(value->key && value->key_size > 0 && value->type <= RF_F64);
        check_inside(bytes, size, value->key, value->key_size);
        check_inside(bytes, size, value->data, value->bytes);
        (void)rf_value_u64(value, &u);
        (void)rf_value_i64(value, &n);
        (void)rf_value_f64(value, &d);
        if (value->type == RF_ARRAY)
            check_array(metadata, bytes, size, value);
    }
    assert(!metadata_find(metadata, ""));
    metadata_free(metadata);
    free(bytes);
    return 0;
}
