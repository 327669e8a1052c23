#include "daemon/gguf/gguf_locate.h"

#include "daemon/header/name_set.h"

#include <errno.h>
#include <stdlib.h>

/* A fault shows at most so many bytes of a name. */
#define NAME_TOLD 64

/* Sets the pointers of the key-values, which begin at *pos, and moves *pos to their end. */
static int locate_metadata(struct header_reader *r, struct model_header *model, size_t *pos)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0};
    int error = name_set_init(&seen, model->n_kv);

    if (error)
        return error;
    for (size_t i = 0; i < model->n_kv; i++) {
        struct header_kv *kv = &model->kv[i];
        size_t type = *pos + 8 + kv->key.size;

        kv->key.bytes = (const char *)r->bytes + *pos + 8;
        kv->data = r->bytes + type + (kv->type == GGUF_ARRAY ? 16 : 4);
        if (!name_set_add(&seen, kv->key.bytes, kv->key.size))
            return header_refuse(r, *pos, "a key stands twice in the metadata");
        *pos = (size_t)(kv->data - r->bytes) + kv->data_size;
    }
    return 0;
}

static int locate_tensor(struct header_reader *r, const struct model_header *model, struct header_tensor *tensor,
                         struct name_set *seen, size_t *pos)
{
    struct header_string name = {(const char *)r->bytes + *pos + 8, header_load_u64(r->bytes + *pos)};
    size_t after_name = *pos + 8 + name.size;
    size_t offset_field = after_name + 4 + 8 * tensor->n_dims + 4;
    uint64_t room = model->file_size - model->data_start;
    const int told = name.size < NAME_TOLD ? (int)name.size : NAME_TOLD;

    if (!name_set_add(seen, name.bytes, name.size))
        return header_refuse(r, *pos, "two tensors are called %.*s", told, name.bytes);
    if (tensor->offset > room)
        return header_refuse(r, offset_field, "tensor %.*s begins past the end of the file", told, name.bytes);
    const uint64_t least = tensor->type->kind == TYPE_FOREIGN ? tensor->elements > 0 : tensor->bytes;
    if (least > room - tensor->offset)
        return header_refuse(r, offset_field, "tensor %.*s reaches past the end of the file", told, name.bytes);
    tensor->offset += model->data_start;
    tensor->name = name.bytes;
    /* The NUL after the name overwrites the first byte of the number of dimensions. The number itself was read into
     * n_dims. */
    r->bytes[after_name] = 0;
    *pos = offset_field + 8;
    return 0;
}

static int locate_tensors(struct header_reader *r, struct model_header *model, size_t *pos)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0};
    int error = name_set_init(&seen, model->n_tensors);

    if (error)
        return error;
    for (size_t i = 0; i < model->n_tensors; i++) {
        error = locate_tensor(r, model, &model->tensors[i], &seen, pos);
        if (error)
            return error;
    }
    return 0;
}

static int offset_compare(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* The smallest of the offsets, which are sorted, that is greater than `offset`; `end` if there is none. */
static uint64_t offset_behind(const uint64_t *offsets, size_t n, uint64_t offset, uint64_t end)
{
    size_t low = 0, high = n;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (offsets[middle] > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return low < n ? offsets[low] : end;
}

/* A tensor whose type has no known block size gets all bytes up to the next tensor, or to the end of the file. */
static int measure_foreign(struct model_header *model)
{
    if (model->n_foreign == 0)
        return 0;
    uint64_t *offsets = calloc(model->n_tensors, sizeof *offsets);
    if (!offsets)
        return -ENOMEM;
    for (size_t i = 0; i < model->n_tensors; i++)
        offsets[i] = model->tensors[i].offset;
    qsort(offsets, model->n_tensors, sizeof *offsets, offset_compare);
    for (size_t i = 0; i < model->n_tensors; i++) {
        struct header_tensor *tensor = &model->tensors[i];

        if (tensor->type->kind == TYPE_FOREIGN && tensor->elements > 0)
            tensor->bytes = offset_behind(offsets, model->n_tensors, tensor->offset, model->file_size) - tensor->offset;
    }
    free(offsets);
    return 0;
}

int gguf_locate(struct header_reader *r, struct model_header *model)
{
    size_t pos = GGUF_FIXED_BYTES;

    model->data_start = r->pos;
    if (model->n_tensors > 0)
        model->data_start = (r->pos + model->alignment - 1) & ~(model->alignment - 1);
    if (model->data_start > r->file_size)
        return header_refuse(r, r->pos, "the file ends before its tensor data");
    model->header_bytes = r->pos;
    model->n_infos = model->n_tensors;
    int error = locate_metadata(r, model, &pos);
    if (error)
        return error;
    error = locate_tensors(r, model, &pos);
    if (error)
        return error;
    return measure_foreign(model);
}
