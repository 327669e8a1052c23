/* A ggml backend that stands in for ggml-hip (and ggml-cuda, which is the same source), so that the plug-in's GPU path
 * is tested without a GPU: its device memory is host memory that ggml takes for a GPU's, and the CPU backend computes
 * on it. It has that backend's rules, which the plug-in relies on:
 *
 *  - a buffer type is its own if its get_name is its function, and belongs to a device if its `device` does;
 *  - the buffer type's context begins with the device's index and a std::string with the name;
 *  - behind a quantised tensor whose rows are no multiple of 512 elements stand bytes that kernels read: they must be
 *    zeros. What breaks this rule ends the program with a line, where a GPU would give wrong numbers.
 *
 * It is loaded by a whole ggml of either version, as libggml-hip.so beside the program. FAKE_GPUS: how many devices
 * there are (default 1). FAKE_GPU_CONTEXT=other: the context is laid out otherwise, which the plug-in has to notice. */
#if RF_GGML_API == 2
#include "client/engines/llama/ggml_api2.h"
#else
#include "client/engines/llama/ggml_api3.h"
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS_MAX    4
#define ROW_PADDING 512

struct backend;

struct backend_i {
    const char *(*get_name)(struct backend *backend);
    void (*free)(struct backend *backend);
    ggml_unused tensors[5];
    ggml_unused synchronize;
    ggml_unused plans[4];
    int (*graph_compute)(struct backend *backend, void *graph);
    ggml_unused event_record, event_wait, graph_optimize;
};

struct backend {
    void *guid;
    struct backend_i iface;
    struct ggml_backend_device *device;
    void *context; /* the CPU's backend */
};

/* Of ggml, in the process that loads this. */
extern struct ggml_backend_buffer *ggml_backend_buffer_init(struct ggml_backend_buffer_type *,
                                                            struct ggml_backend_buffer_i, void *, size_t);
extern size_t ggml_nbytes(const struct ggml_tensor *);
extern size_t ggml_row_size(int type, int64_t elements);
extern bool ggml_is_quantized(int type);
extern struct ggml_backend_device *ggml_backend_dev_get(size_t);
extern size_t ggml_backend_dev_count(void);
extern int ggml_graph_n_nodes(void *graph);
extern struct ggml_tensor *ggml_graph_node(void *graph, int i);
extern const char *ggml_op_name(int op);

struct ggml_backend_reg *ggml_backend_init(void) __attribute__((visibility("default")));

/* As libstdc++ lays out a std::string. */
struct text {
    const char *bytes;
    size_t size;
    char rest[16];
};

struct type_context {
    int index;
    struct text name;
};

struct other_context {
    struct text name;
    int index;
};

static struct gpu {
    struct ggml_backend_device device;
    struct ggml_backend_buffer_type buft;
    struct type_context context;
    struct other_context other;
    char name[16];
    char pci[16];
} gpus[GPUS_MAX];
static size_t n_gpus;
static struct ggml_backend_reg registry;

static _Noreturn void broken(const char *rule, const char *tensor)
{
    fprintf(stderr, "fake_gpu: %s: %s\n", rule, tensor);
    _exit(97);
}

static struct ggml_backend_device *cpu(void)
{
    for (size_t i = 0; i < ggml_backend_dev_count(); i++)
        if (ggml_backend_dev_get(i)->iface.get_type(ggml_backend_dev_get(i)) == GGML_DEVICE_CPU)
            return ggml_backend_dev_get(i);
    return NULL;
}

/* --- buffers --- */

static void buffer_free(struct ggml_backend_buffer *buffer)
{
    free(buffer->context);
}

static void *buffer_base(struct ggml_backend_buffer *buffer)
{
    return buffer->context;
}

static size_t type_alloc_size(struct ggml_backend_buffer_type *buft, const struct ggml_tensor *tensor)
{
    size_t size = ggml_nbytes(tensor);
    (void)buft;
    if (ggml_is_quantized(tensor->type) && tensor->ne[0] % ROW_PADDING != 0)
        size += ggml_row_size(tensor->type, ROW_PADDING - tensor->ne[0] % ROW_PADDING);
    return size;
}

static int buffer_init_tensor(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor)
{
    size_t size = ggml_nbytes(tensor), padded = type_alloc_size(buffer->buft, tensor);
    if (!tensor->view_src && padded > size)
        memset((char *)tensor->data + size, 0, padded - size);
    return GGML_STATUS_SUCCESS;
}

static void buffer_memset(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor, uint8_t value, size_t offset,
                          size_t size)
{
    (void)buffer;
    memset((char *)tensor->data + offset, value, size);
}

static void buffer_set(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset,
                       size_t size)
{
    (void)buffer;
    memcpy((char *)tensor->data + offset, data, size);
}

static void buffer_get(struct ggml_backend_buffer *buffer, const struct ggml_tensor *tensor, void *data, size_t offset,
                       size_t size)
{
    (void)buffer;
    memcpy(data, (const char *)tensor->data + offset, size);
}

static void buffer_clear(struct ggml_backend_buffer *buffer, uint8_t value)
{
    memset(buffer->context, value, buffer->size);
}

static const struct ggml_backend_buffer_i buffer_interface = {
    .free_buffer = buffer_free,
    .get_base = buffer_base,
    .init_tensor = buffer_init_tensor,
    .memset_tensor = buffer_memset,
    .set_tensor = buffer_set,
    .get_tensor = buffer_get,
    .clear = buffer_clear,
};

/* --- buffer types --- */

static const char *type_name(struct ggml_backend_buffer_type *buft)
{
    const char *how = getenv("FAKE_GPU_CONTEXT");
    if (how && strcmp(how, "other") == 0)
        return ((struct other_context *)buft->context)->name.bytes;
    return ((struct type_context *)buft->context)->name.bytes;
}

/* Memory as it comes: full of what is no number. */
static struct ggml_backend_buffer *type_alloc(struct ggml_backend_buffer_type *buft, size_t size)
{
    const char *limit = getenv("FAKE_GPU_LIMIT"); /* bytes of one buffer */
    if (limit && size > strtoull(limit, NULL, 10))
        return NULL;
    void *memory = aligned_alloc(256, (size + 255) / 256 * 256 + 256);
    if (!memory)
        return NULL;
    memset(memory, 0xff, size);
    return ggml_backend_buffer_init(buft, buffer_interface, memory, size);
}

static size_t type_alignment(struct ggml_backend_buffer_type *buft)
{
    (void)buft;
    return 128;
}

static bool type_is_ours(const struct ggml_backend_buffer_type *buft)
{
    return buft->iface.get_name == type_name;
}

/* --- computing --- */

static void check_padding(const struct ggml_tensor *tensor)
{
    size_t size = ggml_nbytes(tensor), padded = type_alloc_size(NULL, tensor);
    for (const unsigned char *at = (const unsigned char *)tensor->data + size; size < padded; size++, at++)
        if (*at != 0)
            broken("bytes behind the rows are not zero", tensor->name);
}

/* Nothing is computed for these, so their tensors may be on any device. */
static bool is_view(const struct ggml_tensor *node)
{
    static const char *const names[] = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(ggml_op_name(node->op), names[i]) == 0)
            return true;
    return false;
}

static void check_node(const struct backend *backend, const struct ggml_tensor *node)
{
    if (is_view(node))
        return;
    for (int i = 0; i < 10 && node->src[i]; i++) {
        const struct ggml_tensor *src = node->src[i];
        const struct ggml_backend_buffer *buffer = src->view_src ? src->view_src->buffer : src->buffer;
        if (!buffer || !type_is_ours(buffer->buft))
            continue;
        if (buffer->buft->device != backend->device)
            broken("a buffer of another device is computed on", src->name);
        if (!src->view_src && buffer->usage == 1 && strcmp(ggml_op_name(node->op), "MUL_MAT") == 0)
            check_padding(src);
    }
}

static int compute(struct backend *backend, void *graph)
{
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++)
        check_node(backend, ggml_graph_node(graph, i));
    struct backend *real = backend->context;
    return real->iface.graph_compute(real, graph);
}

static const char *backend_name(struct backend *backend)
{
    return ((struct gpu *)backend->device->context)->name;
}

static void backend_free(struct backend *backend)
{
    struct backend *real = backend->context;
    real->iface.free(real);
    free(backend);
}

static void *device_init(struct ggml_backend_device *device, const char *parameters)
{
    static char guid[16] = "fake_gpu of test";
    struct backend *real = cpu()->iface.init_backend(cpu(), parameters);
    struct backend *backend = calloc(1, sizeof(*backend));
    void (*set_threads)(struct backend *, int) = NULL;
    void *address = cpu()->reg->iface.get_proc_address(cpu()->reg, "ggml_backend_set_n_threads");
    memcpy(&set_threads, &address, sizeof(address));
    if (set_threads)
        set_threads(real, 1);
    backend->guid = guid;
    backend->iface.get_name = backend_name;
    backend->iface.free = backend_free;
    backend->iface.graph_compute = compute;
    backend->device = device;
    backend->context = real;
    return backend;
}

/* --- devices --- */

static const char *device_name(struct ggml_backend_device *device)
{
    return ((struct gpu *)device->context)->name;
}

static void device_memory(struct ggml_backend_device *device, size_t *free_bytes, size_t *total)
{
    (void)device;
    *free_bytes = *total = (size_t)8 << 30;
}

static int device_type(struct ggml_backend_device *device)
{
    (void)device;
    return GGML_DEVICE_GPU;
}

static void device_props(struct ggml_backend_device *device, struct ggml_backend_dev_props *props)
{
    *props = (struct ggml_backend_dev_props){
        .name = device_name(device),
        .description = "stands in for a GPU",
        .type = GGML_DEVICE_GPU,
        .device_id = ((struct gpu *)device->context)->pci,
        .caps = {.mmap_support = true},
    };
    device_memory(device, &props->memory_free, &props->memory_total);
}

static struct ggml_backend_buffer_type *device_buffer_type(struct ggml_backend_device *device)
{
    return &((struct gpu *)device->context)->buft;
}

static bool device_supports_op(struct ggml_backend_device *device, const struct ggml_tensor *op)
{
    for (int i = 0; i < 10; i++)
        if (op->src[i] && op->src[i]->buffer && type_is_ours(op->src[i]->buffer->buft) &&
            ((const struct type_context *)op->src[i]->buffer->buft->context)->index !=
                ((struct gpu *)device->context)->context.index)
            return false;
    return cpu()->iface.supports_op(cpu(), op);
}

static bool device_supports_buft(struct ggml_backend_device *device, struct ggml_backend_buffer_type *buft)
{
    return type_is_ours(buft) && buft->device == device;
}

static bool never(struct ggml_backend_device *device, const struct ggml_tensor *op)
{
    (void)device, (void)op;
    return false;
}

static void gpu_make(size_t i)
{
    const char *how = getenv("FAKE_GPU_CONTEXT");
    struct gpu *gpu = &gpus[i];
    snprintf(gpu->name, sizeof(gpu->name), "ROCm%zu", i);
    snprintf(gpu->pci, sizeof(gpu->pci), "0000:%02zx:00.0", i + 1);
    const struct text name = {.bytes = gpu->name, .size = strlen(gpu->name)};
    gpu->context = (struct type_context){(int)i, name};
    gpu->other = (struct other_context){name, (int)i};
    gpu->device = (struct ggml_backend_device){
        .iface =
            {
                .get_name = device_name,
                .get_description = device_name,
                .get_memory = device_memory,
                .get_type = device_type,
                .get_props = device_props,
                .init_backend = device_init,
                .get_buffer_type = device_buffer_type,
                .supports_op = device_supports_op,
                .supports_buft = device_supports_buft,
            },
        .reg = &registry,
        .context = gpu,
    };
    bool (*offload)(struct ggml_backend_device *, const struct ggml_tensor *) = never;
    memcpy(&gpu->device.iface.offload_op, &offload, sizeof(offload));
    gpu->buft = (struct ggml_backend_buffer_type){
        .iface =
            {
                .get_name = type_name,
                .alloc_buffer = type_alloc,
                .get_alignment = type_alignment,
                .get_alloc_size = type_alloc_size,
            },
        .device = &gpu->device,
        .context = how && strcmp(how, "other") == 0 ? (void *)&gpu->other : (void *)&gpu->context,
    };
}

static const char *registry_name(struct ggml_backend_reg *reg)
{
    (void)reg;
    return "ROCm";
}

static size_t registry_count(struct ggml_backend_reg *reg)
{
    (void)reg;
    return n_gpus;
}

static struct ggml_backend_device *registry_get(struct ggml_backend_reg *reg, size_t i)
{
    (void)reg;
    return &gpus[i].device;
}

static void *registry_address(struct ggml_backend_reg *reg, const char *name)
{
    (void)reg, (void)name;
    return NULL;
}

struct ggml_backend_reg *ggml_backend_init(void)
{
    const char *wanted = getenv("FAKE_GPUS");
    n_gpus = wanted ? strtoul(wanted, NULL, 10) : 1;
    for (size_t i = 0; i < n_gpus && i < GPUS_MAX; i++)
        gpu_make(i);
    registry = (struct ggml_backend_reg){
        .api_version = GGML_API_VERSION,
        .iface = {registry_name, registry_count, registry_get, registry_address},
    };
    return &registry;
}
