#include "daemon/header/join.h"

#include "daemon/header/name_set.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Copies the tensors of all headers, which are `n_tensors`. */
static int copy_tensors(const struct file_header *headers, size_t n, struct header_tensor *tensors, size_t n_tensors,
                        struct header_fault *fault)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0};
    size_t used = 0;
    if (name_set_init(&seen, n_tensors) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < headers[i].model->n_tensors; j++) {
            struct header_tensor *tensor = &tensors[used++];
            *tensor = headers[i].model->tensors[j];
            tensor->shard = (uint32_t)headers[i].file;
            if (!name_set_add(&seen, tensor->name, strlen(tensor->name)))
                return model_header_refuse(fault, "tensor '%s' stands in two files", tensor->name);
        }
    return 0;
}

int headers_join(const struct file_header *headers, size_t n, struct header_fault *fault)
{
    struct model_header *first = headers[0].model;
    size_t n_tensors = 0;
    for (size_t i = 0; i < n; i++)
        n_tensors += headers[i].model->n_tensors;
    if (n_tensors > HEADER_TENSORS_MAX)
        return model_header_refuse(fault, "the files have %zu tensors together, more than %u", n_tensors,
                                   HEADER_TENSORS_MAX);
    struct header_tensor *tensors = calloc(n_tensors ? n_tensors : 1, sizeof(*tensors));
    int r = tensors ? copy_tensors(headers, n, tensors, n_tensors, fault) : -ENOMEM;
    if (r < 0) {
        free(tensors);
        return r;
    }
    free(first->tensors);
    first->tensors = tensors;
    first->n_tensors = n_tensors;
    first->tensors_capacity = n_tensors;
    for (size_t i = 0; i + 1 < n; i++)
        headers[i].model->next = headers[i + 1].model;
    return 0;
}
