#include "client/tensors.h"

#include "client/error.h"
#include "client/import.h"
#include "client/sealed.h"
#include "kernels/types.h"
#include "proto/table.h"

#include <errno.h>
#include <string.h>

/* Of a type whose blocks the rows need not have whole. */
static bool whole_bytes_fit(const struct table_entry *entry, const struct tensor_type *type)
{
    uint64_t elements = 1, bytes;
    for (uint32_t i = 0; i < entry->n_dims; i++)
        if (__builtin_mul_overflow(elements, entry->shape[i], &elements))
            return false;
    return elements % type->block_elements == 0 &&
           !__builtin_mul_overflow(elements / type->block_elements, type->block_bytes, &bytes) && bytes == entry->bytes;
}

/* True if the entry's size in bytes is the size that follows from its shape, and its form or type. */
static bool bytes_fit(const struct table_entry *entry, const struct tensor_type *type)
{
    uint64_t row = entry->n_dims > 0 ? entry->shape[entry->n_dims - 1] : 1, bytes;
    if (entry->form != FORM_NATIVE) {
        if (__builtin_mul_overflow(row, form_element_bytes((enum form)entry->form), &bytes))
            return false;
    } else if (!type || type->block_elements == 0) {
        return true; /* the daemon may be newer and know a type that this library does not */
    } else if (type->kind == TYPE_KEPT) {
        return whole_bytes_fit(entry, type);
    } else if (row % type->block_elements != 0 ||
               __builtin_mul_overflow(row / type->block_elements, type->block_bytes, &bytes)) {
        return false;
    }
    for (uint32_t i = 0; i + 1 < entry->n_dims; i++)
        if (__builtin_mul_overflow(bytes, entry->shape[i], &bytes))
            return false;
    /* If the daemon does not know the type, the tensor has all bytes of the file up to the next tensor. */
    const bool foreign = entry->form == FORM_NATIVE && entry->type_name[0] && strcmp(entry->type_name, type->name) != 0;
    return foreign ? bytes <= entry->bytes : bytes == entry->bytes;
}

/* Bytes of an element; 0: they are in blocks, or the type is not known. */
static uint64_t element_bytes(const struct table_entry *entry, const struct tensor_type *type)
{
    if (entry->form != FORM_NATIVE)
        return form_element_bytes((enum form)entry->form);
    return type && type->block_elements == 1 ? type->block_bytes : 0;
}

/* Tensors of files are at multiples of 256; members of a group behind its first, and tensors of a model that was
 * published, need not be: only their elements are aligned. */
static bool place_fits(const struct table_entry *entry, const struct tensor_type *type)
{
    const uint64_t bytes = element_bytes(entry, type);
    return bytes == 0 || entry->offset % bytes == 0;
}

/* True if the entry's bytes are those from its first to its last element. */
static bool strides_fit(const struct table_entry *entry, const uint64_t *strides, const struct tensor_type *type)
{
    const uint64_t each = element_bytes(entry, type);
    uint64_t last = 0, step, bytes;
    for (uint32_t i = 0; i < entry->n_dims; i++)
        if (entry->shape[i] == 0 || __builtin_mul_overflow(entry->shape[i] - 1, strides[i], &step) ||
            __builtin_add_overflow(last, step, &last))
            return false;
    return each > 0 && !__builtin_add_overflow(last, 1, &last) && !__builtin_mul_overflow(last, each, &bytes) &&
           bytes == entry->bytes;
}

#define WRONG_CONTENT "its content"

static int table_fail(const rf_model *model, const char *why)
{
    return client_fail(model->client, -EPROTO, "the daemon's table of tensors is wrong: %s", why);
}

int tensors_map(rf_model *model, int fd)
{
    if (fd < 0)
        return table_fail(model, "there is none");
    int r = sealed_map_whole(fd, &model->table, &model->table_bytes);
    if (r == -EPERM)
        return table_fail(model, "it is not sealed");
    if (r == -EMSGSIZE)
        return table_fail(model, "it is empty");
    if (r < 0)
        return client_fail(model->client, r, "mapping the table of tensors failed: %s", strerror(-r));
    r = table_check(model->table, model->table_bytes);
    if (r < 0)
        return table_fail(model, r == -EPROTONOSUPPORT ? "its version is another" : WRONG_CONTENT);
    model->bytes = ((const struct table_header *)model->table)->arena_bytes;
    return 0;
}

/* Describes a tensor after checking what the table says of it. -EPROTO. */
static int tensor_fill(const rf_model *model, const struct table_entry *entry, rf_tensor *ret)
{
    const struct tensor_type *type = tensor_type_find(entry->type);
    const uint64_t *strides = table_strides(model->table, entry);
    if (entry->form >= FORM_COUNT)
        return table_fail(model, "a tensor's form");
    if (!place_fits(entry, type))
        return table_fail(model, "a tensor's place");
    if (strides ? !strides_fit(entry, strides, type) : !bytes_fit(entry, type))
        return table_fail(model, "a tensor's size");
    *ret = (rf_tensor){
        .name = table_name(model->table, entry),
        .type = entry->type_name[0] ? entry->type_name
                : type              ? type->name
                                    : "unknown",
        .type_id = entry->type,
        .form = form_name((enum form)entry->form),
        .n_dims = entry->n_dims,
        .offset = entry->offset,
        .bytes = entry->bytes,
        .padding = entry->padding,
        .flags = entry->flags & TABLE_VIEW ? RF_TENSOR_VIEW : 0,
        .strides = strides,
        .data = model->mapping ? (const char *)model->mapping->data + entry->offset : NULL,
    };
    _Static_assert(RF_DIMS_MAX == TABLE_DIMS_MAX, "a shape of the table is one of the library");
    memcpy(ret->shape, entry->shape, sizeof(ret->shape));
    return 0;
}

size_t rf_model_tensors(const rf_model *model)
{
    return ((const struct table_header *)model->table)->n_tensors;
}

int rf_model_tensor(const rf_model *model, size_t index, rf_tensor *ret)
{
    size_t n = rf_model_tensors(model);
    if (index >= n)
        return client_fail(model->client, -ERANGE, "the model has %zu tensors", n);
    const struct table_entry *entry = table_entry(model->table, index);
    return entry ? tensor_fill(model, entry, ret) : table_fail(model, WRONG_CONTENT);
}

int rf_model_find(const rf_model *model, const char *name, rf_tensor *ret)
{
    const struct table_entry *entry;
    int r = table_find(model->table, name, &entry);
    if (r == -ENOENT)
        return client_fail(model->client, r, "the model has no tensor '%s'", name);
    return r == 0 ? tensor_fill(model, entry, ret) : table_fail(model, WRONG_CONTENT);
}
