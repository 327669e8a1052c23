/* Functions on a parsed header: find, write, measure, free. */
#include "daemon/header/model_header.h"

#include "proto/write_all.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t model_header_memory(const struct model_header *model)
{
    uint64_t bytes = 0;

    for (; model; model = model->next) {
        bytes += sizeof *model + model->memory_bytes + model->text_bytes;
        bytes += model->kv_capacity * sizeof *model->kv + model->tensors_capacity * sizeof *model->tensors;
        bytes += model->foreign ? HEADER_FOREIGN_MAX * sizeof *model->foreign : 0;
    }
    return bytes;
}

int model_header_write(const struct model_header *model, int fd)
{
    const char *begin = model->memory;
    uint8_t piece[4096];
    size_t tensor = 0;

    for (size_t at = 0, size; at < model->header_bytes; at += size) {
        size = model->header_bytes - at < sizeof piece ? model->header_bytes - at : sizeof piece;
        memcpy(piece, begin + at, size);
        /* The parser overwrote the first byte after each name, which is the lowest byte of n_dims, with a NUL. Put it
         * back. */
        for (; tensor < model->n_infos; tensor++) {
            size_t end = (size_t)(model->tensors[tensor].name - begin) + strlen(model->tensors[tensor].name);
            if (end >= at + size)
                break;
            piece[end - at] = (uint8_t)model->tensors[tensor].n_dims;
        }
        int error = write_all(fd, piece, size);
        if (error)
            return error;
    }
    return 0;
}

void model_header_free(struct model_header *model)
{
    while (model) {
        struct model_header *next = model->next;
        free(model->kv);
        free(model->tensors);
        free(model->foreign);
        free(model->memory);
        free(model->text);
        free(model);
        model = next;
    }
}

const struct header_kv *model_header_find(const struct model_header *model, const char *key)
{
    size_t size = strlen(key);

    for (size_t i = 0; i < model->n_kv; i++) {
        const struct header_kv *kv = &model->kv[i];

        if (kv->key.size == size && memcmp(kv->key.bytes, key, size) == 0)
            return kv;
    }
    return NULL;
}

const struct header_tensor *model_header_tensor(const struct model_header *model, const char *name)
{
    for (size_t i = 0; i < model->n_tensors; i++) {
        if (strcmp(model->tensors[i].name, name) == 0)
            return &model->tensors[i];
    }
    return NULL;
}

bool model_header_same(const struct model_header *a, const struct model_header *b)
{
    if (a->n_tensors != b->n_tensors)
        return false;
    for (size_t i = 0; i < a->n_tensors; i++) {
        const struct header_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        if (strcmp(x->name, y->name) != 0 || x->n_dims != y->n_dims || x->bytes != y->bytes || x->offset != y->offset ||
            x->shard != y->shard)
            return false;
    }
    for (; a && b; a = a->next, b = b->next)
        if (a->header_bytes != b->header_bytes || memcmp(a->memory, b->memory, a->header_bytes) != 0)
            return false;
    return !a && !b;
}

int model_header_refuse(struct header_fault *fault, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->reason, sizeof(fault->reason), format, arguments);
    va_end(arguments);
    fault->offset = 0;
    return -EBADMSG;
}
