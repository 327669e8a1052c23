/* Fuzzes the GGUF parser: any file is either refused, with a reason and an offset inside it, or sound. */
#include "daemon/gguf/gguf.h"
#include "proto/utf8.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_kv(const struct model_header *model, const struct header_kv *kv)
{
    struct header_string string;
    char *json;
    uint64_t u;
    int64_t i;
    double d;

    (void)header_kv_u64(kv, &u);
    (void)header_kv_i64(kv, &i);
    (void)header_kv_f64(kv, &d);
    (void)header_kv_string(kv, &string);
    assert(gguf_value_type_name(kv->element_type));
    if (header_kv_json(kv, 16, 64, &json, NULL) == 0)
        free(json);
    if (!memchr(kv->key.bytes, 0, kv->key.size)) {
        char *key = strndup(kv->key.bytes, kv->key.size);

        assert(model_header_find(model, key) == kv);
        free(key);
    }
}

static void check_tensor(const struct model_header *model, const struct header_tensor *tensor)
{
    size_t length = strlen(tensor->name);

    assert(length > 0 && length <= HEADER_NAME_MAX);
    for (size_t i = 0; i < length;) {
        size_t character = utf8_character(tensor->name + i, length - i);

        assert(character > 0);
        i += character;
    }
    assert(tensor->n_dims <= HEADER_DIMS_MAX);
    assert(tensor->type->kind != TYPE_REMOVED && tensor->type->name[0]);
    assert(tensor->ne[0] % tensor->type->block_elements == 0);
    if (tensor->type->kind == TYPE_FOREIGN)
        assert((tensor->elements == 0) == (tensor->bytes == 0));
    else
        assert(tensor->bytes == tensor->elements / tensor->type->block_elements * tensor->type->block_bytes);
    assert(tensor->offset >= model->data_start && tensor->offset <= model->file_size);
    assert((tensor->offset - model->data_start) % model->alignment == 0);
    assert(tensor->bytes <= model->file_size - tensor->offset);
    assert(model_header_tensor(model, tensor->name) == tensor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct header_fault fault = {0};
    struct model_header *model = NULL;

    if (fd < 0)
        fd = memfd_create("fuzz.gguf", MFD_CLOEXEC);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    int error = gguf_read(fd, size, &model, &fault);
    if (error) {
        assert(error == -EBADMSG && !model);
        assert(fault.reason[0] && fault.offset <= size);
        return 0;
    }
    for (size_t i = 0; i < model->n_kv; i++)
        check_kv(model, &model->kv[i]);
    for (size_t i = 0; i < model->n_tensors; i++)
        check_tensor(model, &model->tensors[i]);
    model_header_free(model);
    return 0;
}
