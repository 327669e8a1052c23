/* A buffer type in version 3 of ggml's backend interface. Source: ggml 0.26.0, ggml/src/ggml-backend-impl.h. */
#pragma once

#include "client/engines/llama/ggml_api.h"

#define GGML_API_VERSION 3

struct ggml_backend_buffer_type_i {
    const char *(*get_name)(struct ggml_backend_buffer_type *buft);
    struct ggml_backend_buffer *(*alloc_buffer)(struct ggml_backend_buffer_type *buft, size_t size);
    ggml_unused alloc_buffer_n; /* NULL: alloc_buffer is used */
    size_t (*get_alignment)(struct ggml_backend_buffer_type *buft);
    size_t (*get_max_size)(struct ggml_backend_buffer_type *buft);
    size_t (*get_alloc_size)(struct ggml_backend_buffer_type *buft, const struct ggml_tensor *tensor);
    ggml_unused get_alloc_size_n; /* NULL: get_alloc_size is used */
    bool (*is_host)(struct ggml_backend_buffer_type *buft);
};

struct ggml_backend_buffer_type {
    struct ggml_backend_buffer_type_i iface;
    struct ggml_backend_device *device;
    void *context;
};
