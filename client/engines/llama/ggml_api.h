/* The parts of ggml's backend interface that the plug-in uses and that are the same in all supported versions. They are
 * declared here so that the build needs no header of ggml.
 *
 * Source: ggml 0.25.3 and 0.26.0, ggml/include/ggml.h, ggml/include/ggml-backend.h and ggml/src/ggml-backend-impl.h.
 * engine.c first compares the layouts with the running engine. Members that the plug-in does not use are declared as
 * `ggml_unused`. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void (*ggml_unused)(void);

struct ggml_backend_buffer;
struct ggml_backend_buffer_type;
struct ggml_backend_device;
struct ggml_backend_reg;

enum { GGML_STATUS_FAILED = -1, GGML_STATUS_SUCCESS = 0 };
enum { GGML_DEVICE_CPU = 0, GGML_DEVICE_GPU = 1, GGML_DEVICE_IGPU = 2 };

struct ggml_tensor {
    int type;
    struct ggml_backend_buffer *buffer;
    int64_t ne[4]; /* elements, fastest dimension first */
    size_t nb[4];  /* strides in bytes */
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct ggml_tensor *src[10];
    struct ggml_tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
    void *extra;
    char padding[8];
};

/* Bytes that ggml_tensor_overhead() adds to the size of a tensor. */
#define GGML_OBJECT_BYTES 32

struct ggml_backend_buffer_i {
    void (*free_buffer)(struct ggml_backend_buffer *buffer);
    void *(*get_base)(struct ggml_backend_buffer *buffer);
    int (*init_tensor)(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor);
    void (*memset_tensor)(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset,
                          size_t size);
    void (*set_tensor)(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset,
                       size_t size);
    void (*get_tensor)(struct ggml_backend_buffer *buffer, const struct ggml_tensor *tensor, void *data, size_t offset,
                       size_t size);
    ggml_unused set_tensor_2d;
    ggml_unused get_tensor_2d;
    bool (*cpy_tensor)(struct ggml_backend_buffer *buffer, const struct ggml_tensor *src, struct ggml_tensor *dst);
    void (*clear)(struct ggml_backend_buffer *buffer, uint8_t value);
    ggml_unused reset;
};

/* These are C++ objects: only ggml_backend_buffer_init() may make one, and only ggml_backend_buffer_free() may free
 * one. */
struct ggml_backend_buffer {
    struct ggml_backend_buffer_i iface;
    struct ggml_backend_buffer_type *buft;
    void *context;
    size_t size;
    int usage;
};

struct ggml_backend_dev_caps {
    bool async, host_buffer, buffer_from_host_ptr, events, mmap_support;
};

struct ggml_backend_dev_props {
    const char *name;
    const char *description;
    size_t memory_free;
    size_t memory_total;
    int type;
    const char *device_id; /* "0000:c1:00.0"; NULL: unknown */
    struct ggml_backend_dev_caps caps;
};

struct ggml_backend_device_i {
    const char *(*get_name)(struct ggml_backend_device *device);
    const char *(*get_description)(struct ggml_backend_device *device);
    void (*get_memory)(struct ggml_backend_device *device, size_t *free, size_t *total);
    int (*get_type)(struct ggml_backend_device *device);
    void (*get_props)(struct ggml_backend_device *device, struct ggml_backend_dev_props *props);
    void *(*init_backend)(struct ggml_backend_device *device, const char *parameters);
    struct ggml_backend_buffer_type *(*get_buffer_type)(struct ggml_backend_device *device);
    struct ggml_backend_buffer_type *(*get_host_buffer_type)(struct ggml_backend_device *device);
    ggml_unused buffer_from_host_ptr;
    bool (*supports_op)(struct ggml_backend_device *device, const struct ggml_tensor *op);
    bool (*supports_buft)(struct ggml_backend_device *device, struct ggml_backend_buffer_type *buft);
    ggml_unused offload_op;
    ggml_unused event_new;
    ggml_unused event_free;
    ggml_unused event_synchronize;
};

struct ggml_backend_device {
    struct ggml_backend_device_i iface;
    struct ggml_backend_reg *reg;
    void *context;
};

struct ggml_backend_reg_i {
    const char *(*get_name)(struct ggml_backend_reg *reg);
    size_t (*get_device_count)(struct ggml_backend_reg *reg);
    struct ggml_backend_device *(*get_device)(struct ggml_backend_reg *reg, size_t index);
    void *(*get_proc_address)(struct ggml_backend_reg *reg, const char *name);
};

struct ggml_backend_reg {
    int api_version;
    struct ggml_backend_reg_i iface;
    void *context;
};
