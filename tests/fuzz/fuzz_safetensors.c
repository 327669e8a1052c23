/* Fuzzes the reader of safetensors: any file is either refused, with a reason and an offset inside it, or sound. */
#include "daemon/safetensors/safetensors.h"
#include "proto/utf8.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DATA_BYTES 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text, size_t size)
{
    for (size_t i = 0, n; i < size; i += n) {
        n = utf8_character(text + i, size - i);
        assert(n > 0);
    }
}

static void check_tensor(const struct model_header *model, const struct header_tensor *tensor)
{
    uint64_t elements = 1;

    assert(tensor->name[0] && strlen(tensor->name) <= HEADER_NAME_MAX);
    check_text(tensor->name, strlen(tensor->name));
    assert(tensor->n_dims <= HEADER_DIMS_MAX);
    for (uint32_t i = 0; i < HEADER_DIMS_MAX; i++) {
        elements *= tensor->ne[i];
        assert(i < tensor->n_dims || tensor->ne[i] == 1);
    }
    assert(elements == tensor->elements);
    assert(tensor->elements % tensor->type->block_elements == 0);
    assert(tensor->bytes == tensor->elements / tensor->type->block_elements * tensor->type->block_bytes);
    assert(model_header_tensor(model, tensor->name) == tensor);
}

static void check_model(const struct model_header *model)
{
    uint64_t end = model->data_start;

    for (size_t i = 0; i < model->n_kv; i++) {
        const struct header_kv *kv = &model->kv[i];
        struct header_string string;
        char *json;

        assert(header_kv_string(kv, &string) == 0);
        check_text(string.bytes, string.size);
        check_text(kv->key.bytes, kv->key.size);
        assert(model_header_find(model, kv->key.bytes) == kv);
        if (header_kv_json(kv, 16, 64, &json, NULL) == 0)
            free(json);
    }
    for (size_t i = 0; i < model->n_tensors; i++) {
        check_tensor(model, &model->tensors[i]);
        assert(model->tensors[i].offset == end);
        end += model->tensors[i].bytes;
    }
    assert(end == model->file_size);
    assert(model->text_bytes <= 2 * model->header_bytes + 64);
}

static void read_file(int fd, size_t size)
{
    struct header_fault fault = {0};
    struct model_header *model = NULL;
    size_t file = 1;

    int error = safetensors_read(&(struct header_file){fd, size}, 1, &model, &fault, &file);
    assert(file == 0);
    if (error) {
        assert(error == -EBADMSG && !model);
        assert(fault.reason[0] && fault.offset <= size);
        return;
    }
    check_model(model);
    model_header_free(model);
}

/* The input is a file, and then the JSON of a file whose tensors have DATA_BYTES. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    const uint64_t length = htole64(size);
    const size_t whole = sizeof length + size + DATA_BYTES;

    if (fd < 0)
        fd = memfd_create("fuzz.safetensors", MFD_CLOEXEC);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size)
        abort();
    read_file(fd, size);
    if (pwrite(fd, &length, sizeof length, 0) != sizeof length ||
        pwrite(fd, data, size, sizeof length) != (ssize_t)size || ftruncate(fd, (off_t)whole) != 0)
        abort();
    read_file(fd, whole);
    return 0;
}
