/* Parsing takes two passes. The first pass, which is here, reads the header field by field, checks each field, and
 * stores sizes. It stores no pointers, because the buffer moves when it grows. The second pass is gguf_locate(). */
#include "daemon/gguf/gguf.h"

#include "daemon/gguf/gguf_locate.h"
#include "daemon/header/header_reader.h"
#include "proto/array.h"
#include "proto/utf8.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT  32                  /* if general.alignment is absent */
#define SIZE_BOUND (UINT64_C(1) << 53) /* of a file's size and of a dimension: JSON numbers are exact up to here */

/* The fewest bytes that one of these can have in the file. */
#define KV_BYTES_MIN     14 /* a key of one byte, and a value of one */
#define TENSOR_BYTES_MIN 25 /* a name of one byte, and no dimensions */
#define ARRAY_BYTES_MIN  12 /* the type of its elements, and their number */

/* Entries that are allocated for an array at first. The array doubles when it is full. So its memory depends on the
 * entries that were read, and not on the count in the file, which may be false. */
#define ENTRIES_FIRST 64

static int read_count(struct header_reader *r, const char *what, uint64_t most, unsigned bytes_min, size_t *ret)
{
    uint64_t field = r->pos, count;
    int error = header_take_u64(r, &count);

    if (error)
        return error;
    if (count > most)
        return header_refuse(r, field, "%" PRIu64 " %s are more than %" PRIu64, count, what, most);
    if (count > (r->file_size - r->pos) / bytes_min)
        return header_refuse(r, field, "%" PRIu64 " %s do not fit into the file", count, what);
    *ret = (size_t)count;
    return 0;
}

static int read_preamble(struct header_reader *r, struct model_header *model)
{
    int error = header_ensure(r, 4, 0);

    if (error)
        return error;
    if (memcmp(r->bytes, "GGUF", 4) != 0)
        return header_refuse(r, 0, "not a GGUF file");
    r->pos = 4;
    error = header_take_u32(r, &model->version);
    if (error)
        return error;
    if (model->version != 0 && (model->version & 0xffff) == 0)
        return header_refuse(r, 4, "a big-endian file, which is not supported: convert it to little-endian");
    if (model->version == 1)
        return header_refuse(r, 4, "GGUF version 1 is not supported: convert it to version 3");
    if (model->version < 2 || model->version > 3)
        return header_refuse(r, 4, "GGUF version %" PRIu32 " is not known; 2 and 3 are", model->version);
    error = read_count(r, "tensors", HEADER_TENSORS_MAX, TENSOR_BYTES_MIN, &model->n_tensors);
    if (error)
        return error;
    return read_count(r, "keys", HEADER_KV_MAX, KV_BYTES_MIN, &model->n_kv);
}

static int take_value_type(struct header_reader *r, enum gguf_value_type *ret)
{
    uint64_t field = r->pos;
    uint32_t id;
    int error = header_take_u32(r, &id);

    if (error)
        return error;
    if (id >= GGUF_VALUE_TYPE_COUNT)
        return header_refuse(r, field, "value type %" PRIu32 " is not known", id);
    *ret = (enum gguf_value_type)id;
    return 0;
}

static int take_scalar(struct header_reader *r, enum gguf_value_type type)
{
    size_t size = gguf_scalar_bytes(type);
    int error = header_ensure(r, size, r->pos);

    if (error)
        return error;
    r->pos += size;
    return 0;
}

static int take_array(struct header_reader *r, unsigned depth, struct header_kv *kv, size_t *ret_start);

/* Skips the elements of an array. `field` is the position of their count. */
static int take_elements(struct header_reader *r, unsigned depth, enum gguf_value_type type, uint64_t count,
                         uint64_t field)
{
    size_t each = type == GGUF_STRING  ? GGUF_STRING_LENGTH
                  : type == GGUF_ARRAY ? ARRAY_BYTES_MIN
                                       : gguf_scalar_bytes(type);

    assert(each > 0); /* the type was checked */
    if (count > (r->file_size - r->pos) / each)
        return header_refuse(r, field, "an array of %" PRIu64 " elements reaches past the end of the file", count);
    if (type == GGUF_STRING)
        return header_skip_strings(r, "a string", count);
    if (type == GGUF_ARRAY) {
        int r_nested = 0;
        for (uint64_t i = 0; i < count && r_nested == 0; i++)
            r_nested = take_array(r, depth + 1, &(struct header_kv){0}, &(size_t){0});
        return r_nested;
    }
    int error = header_ensure(r, count * each, field);
    if (error)
        return error;
    r->pos += (size_t)(count * each);
    return 0;
}

/* Reads an array's element type and length into `kv`, and skips its elements. *ret_start: the position of the first
 * element. depth: how many arrays enclose it. */
static int take_array(struct header_reader *r, unsigned depth, struct header_kv *kv, size_t *ret_start)
{
    uint64_t field = r->pos;
    int error = take_value_type(r, &kv->element_type);

    if (error)
        return error;
    if (kv->element_type == GGUF_ARRAY && depth + 1 >= GGUF_NESTING_MAX)
        return header_refuse(r, field, "arrays stand in arrays, more than %u deep", GGUF_NESTING_MAX);
    field = r->pos;
    error = header_take_u64(r, &kv->count);
    if (error)
        return error;
    *ret_start = r->pos;
    return take_elements(r, depth, kv->element_type, kv->count, field);
}

/* Only a power of two is accepted: then padding can be computed with a mask. `type_field` is the position of the
 * value's type; the value follows the type. */
static int read_alignment(struct header_reader *r, const struct header_kv *kv, uint64_t type_field,
                          struct model_header *model)
{
    if (kv->type != GGUF_U32)
        return header_refuse(r, type_field, "general.alignment is not a u32");
    uint32_t value = header_load_u32(r->bytes + type_field + 4);
    if (value == 0 || (value & (value - 1)) != 0)
        return header_refuse(r, type_field + 4, "general.alignment is %" PRIu32 ", not a power of two", value);
    model->alignment = value;
    return 0;
}

static int read_kv(struct header_reader *r, struct header_kv *kv, struct model_header *model)
{
    static const char alignment[] = "general.alignment";
    uint64_t key_field = r->pos;
    int error = header_take_string(r, "a key", HEADER_KEY_MAX, &kv->key.size);

    if (error)
        return error;
    if (kv->key.size == 0)
        return header_refuse(r, key_field, "a key is empty");

    uint64_t type_field = r->pos;
    error = take_value_type(r, &kv->type);
    if (error)
        return error;
    size_t start = r->pos;
    kv->element_type = kv->type;
    kv->count = 1;
    if (kv->type == GGUF_ARRAY)
        error = take_array(r, 0, kv, &start);
    else if (kv->type == GGUF_STRING)
        error = header_take_string(r, "a string", UINT64_MAX, &(size_t){0});
    else
        error = take_scalar(r, kv->type);
    if (error)
        return error;
    kv->data_size = r->pos - start;
    if (kv->key.size == sizeof alignment - 1 && memcmp(r->bytes + key_field + 8, alignment, sizeof alignment - 1) == 0)
        return read_alignment(r, kv, type_field, model);
    return 0;
}

static int read_metadata(struct header_reader *r, struct model_header *model)
{
    for (size_t i = 0; i < model->n_kv; i++) {
        int error = array_reserve(&model->kv, &model->kv_capacity, i, sizeof *model->kv, ENTRIES_FIRST);

        if (error)
            return error;
        model->kv[i] = (struct header_kv){0};
        error = read_kv(r, &model->kv[i], model);
        if (error)
            return error;
    }
    array_trim(&model->kv, &model->kv_capacity, model->n_kv, sizeof *model->kv);
    return 0;
}

/* Refuses a name that cannot be printed, compared as a C string, or sent as JSON. */
static int check_name(struct header_reader *r, uint64_t field, const char *name, size_t size)
{
    if (size == 0)
        return header_refuse(r, field, "a tensor's name is empty");
    if (memchr(name, 0, size))
        return header_refuse(r, field, "a tensor's name contains a NUL byte");
    for (size_t i = 0; i < size;) {
        size_t length = utf8_character(name + i, size - i);

        if (length == 0)
            return header_refuse(r, field, "a tensor's name is not UTF-8");
        i += length;
    }
    return 0;
}

static int read_dimensions(struct header_reader *r, struct header_tensor *tensor)
{
    uint64_t field = r->pos;
    bool empty = false;
    int error = header_take_u32(r, &tensor->n_dims);

    if (error)
        return error;
    if (tensor->n_dims > HEADER_DIMS_MAX)
        return header_refuse(r, field, "a tensor has %" PRIu32 " dimensions; %u are the most", tensor->n_dims,
                             HEADER_DIMS_MAX);
    field = r->pos;
    for (unsigned i = 0; i < HEADER_DIMS_MAX; i++) {
        tensor->ne[i] = 1;
        if (i >= tensor->n_dims)
            continue;
        error = header_take_u64(r, &tensor->ne[i]);
        if (error)
            return error;
        if (tensor->ne[i] > SIZE_BOUND)
            return header_refuse(r, field + 8 * i, "a tensor's dimension is larger than 2^53");
        empty = empty || tensor->ne[i] == 0;
    }
    /* If one dimension is 0 the tensor is empty, even if the product of the others would overflow. */
    tensor->elements = empty ? 0 : 1;
    for (unsigned i = 0; i < tensor->n_dims && !empty; i++) {
        if (__builtin_mul_overflow(tensor->elements, tensor->ne[i], &tensor->elements) || tensor->elements > INT64_MAX)
            return header_refuse(r, field + 8 * i, "the product of a tensor's dimensions is larger than 2^63");
    }
    return 0;
}

/* The entry for a type number whose block size is not known; adds one if there is none yet. NULL if the model has too
 * many such types, or, with *ret_error set, if there is no memory. */
static const struct tensor_type *foreign_type(struct model_header *model, uint32_t id, int *ret_error)
{
    *ret_error = 0;
    if (!model->foreign)
        model->foreign = calloc(HEADER_FOREIGN_MAX, sizeof *model->foreign);
    if (!model->foreign) {
        *ret_error = -ENOMEM;
        return NULL;
    }
    for (size_t i = 0; i < model->n_foreign; i++)
        if (model->foreign[i].type.id == id)
            return &model->foreign[i].type;
    if (model->n_foreign == HEADER_FOREIGN_MAX)
        return NULL;
    struct header_foreign *foreign = &model->foreign[model->n_foreign++];
    const struct tensor_type *known = tensor_type_find(id);

    snprintf(foreign->name, sizeof foreign->name, "type%" PRIu32, id);
    foreign->type = (struct tensor_type){id, known ? known->name : foreign->name, 1, 1, TYPE_FOREIGN};
    return &foreign->type;
}

/* Reads the type, and sets tensor->bytes if the type has a known block size. `dimensions` is the position of the first
 * dimension, for a fault. */
static int read_type(struct header_reader *r, struct model_header *model, struct header_tensor *tensor,
                     uint64_t dimensions)
{
    uint64_t field = r->pos;
    uint32_t id;
    int error = header_take_u32(r, &id);

    if (error)
        return error;
    if (id > GGUF_TYPE_MAX)
        return header_refuse(r, field, "%" PRIu32 " is no number of a tensor type", id);
    const struct tensor_type *type = tensor_type_find(id);
    if (!type || type->kind == TYPE_REMOVED) {
        tensor->type = foreign_type(model, id, &error);
        if (error || tensor->type)
            return error;
        return header_refuse(r, field, "more than %u tensor types are not known", HEADER_FOREIGN_MAX);
    }
    if (tensor->ne[0] % type->block_elements != 0)
        return header_refuse(r, dimensions, "rows of %" PRIu64 " elements are not whole %s blocks of %" PRIu32,
                             tensor->ne[0], type->name, type->block_elements);
    if (__builtin_mul_overflow(tensor->elements / type->block_elements, type->block_bytes, &tensor->bytes))
        return header_refuse(r, dimensions, "a tensor is larger than 2^64 bytes");
    tensor->type = type;
    return 0;
}

/* Sets tensor->offset relative to the start of the tensor data. The position of the tensor data is not known yet. */
static int read_tensor(struct header_reader *r, struct model_header *model, struct header_tensor *tensor)
{
    uint64_t field = r->pos;
    size_t name_size;
    int error = header_take_string(r, "a tensor's name", HEADER_NAME_MAX, &name_size);

    if (error)
        return error;
    error = check_name(r, field, (const char *)r->bytes + field + 8, name_size);
    if (error)
        return error;
    uint64_t dimensions = r->pos + 4;
    error = read_dimensions(r, tensor);
    if (error)
        return error;
    error = read_type(r, model, tensor, dimensions);
    if (error)
        return error;
    field = r->pos;
    error = header_take_u64(r, &tensor->offset);
    if (error)
        return error;
    if (tensor->offset % model->alignment != 0)
        return header_refuse(r, field, "a tensor's offset %" PRIu64 " is not a multiple of %" PRIu64, tensor->offset,
                             model->alignment);
    return 0;
}

static int read_tensors(struct header_reader *r, struct model_header *model)
{
    for (size_t i = 0; i < model->n_tensors; i++) {
        int error = array_reserve(&model->tensors, &model->tensors_capacity, i, sizeof *model->tensors, ENTRIES_FIRST);

        if (error)
            return error;
        model->tensors[i] = (struct header_tensor){0};
        error = read_tensor(r, model, &model->tensors[i]);
        if (error)
            return error;
    }
    array_trim(&model->tensors, &model->tensors_capacity, model->n_tensors, sizeof *model->tensors);
    return 0;
}

/* --- The model --- */

static int read_header(struct header_reader *r, struct model_header *model)
{
    if (r->file_size > SIZE_BOUND)
        return header_refuse(r, 0, "the file is larger than 2^53 bytes");
    int error = read_preamble(r, model);
    if (error)
        return error;
    error = read_metadata(r, model);
    if (error)
        return error;
    error = read_tensors(r, model);
    if (error)
        return error;
    header_trim(r);
    return gguf_locate(r, model);
}

int gguf_read_within(int fd, uint64_t file_size, uint64_t most, struct model_header **ret,
                     struct header_fault *ret_fault)
{
    struct header_reader reader = {.fd = fd, .file_size = file_size, .most = most, .fault = ret_fault};
    struct model_header *model = calloc(1, sizeof *model);

    if (!model)
        return -ENOMEM;
    model->format = "gguf";
    model->file_size = file_size;
    model->alignment = ALIGNMENT;
    int error = read_header(&reader, model);
    model->memory = reader.bytes;
    model->memory_bytes = reader.capacity;
    if (error) {
        model_header_free(model);
        return error;
    }
    *ret = model;
    return 0;
}

int gguf_read(int fd, uint64_t file_size, struct model_header **ret, struct header_fault *ret_fault)
{
    return gguf_read_within(fd, file_size, HEADER_BYTES_MAX, ret, ret_fault);
}

void gguf_prepare(void)
{
    header_prepare();
}
