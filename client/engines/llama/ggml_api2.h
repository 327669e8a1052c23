/* A buffer type in version 2 of ggml's backend interface. Source: ggml 0.25.3, ggml/src/ggml-backend-impl.h. */
#pragma once

#include "client/engines/llama/ggml_api.h"

#define GGML_API_VERSION 2

struct ggml_backend_buffer_type_i {
    const char *(*get_name)(struct ggml_backend_buffer_type *buft);
    struct ggml_backend_buffer *(*alloc_buffer)(struct ggml_backend_buffer_type *buft, size_t size);
    size_t (*get_alignment)(struct ggml_backend_buffer_type *buft);
    size_t (*get_max_size)(struct ggml_backend_buffer_type *buft);
    size_t (*get_alloc_size)(struct ggml_backend_buffer_type *buft, const struct ggml_tensor *tensor);
    bool (*is_host)(struct ggml_backend_buffer_type *buft);
};

struct ggml_backend_buffer_type {
    struct ggml_backend_buffer_type_i iface;
    struct ggml_backend_device *device;
    void *context;
};
