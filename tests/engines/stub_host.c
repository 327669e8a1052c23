/* A program that does with the plug-in what llama.cpp does, so that it is tested without one: it has the functions of
 * ggml that the plug-in looks for, a CPU device, and GPUs if a stand-in for their backend is named; it opens and maps a
 * model's file, allocates all tensors in a buffer type that it finds by name, and sets each to the file's bytes.
 *
 *   stub_host PLUGIN MODEL [--gpu FILE] [--type NAME] [--version V] [--api N] [--how HOW] [--also FILE]
 *             [--wait]
 *
 * --how: "map" (default); "read": the file is not mapped; "copy": bytes come from elsewhere; "parts": each tensor is
 * set in two parts; "write": after all, the first tensor is written to; "twice": all are set a second time; "views":
 * tensors have views from before they are set, half of one is written to through its view, and all are compared through
 * their views; "early": a tensor is read before it is set; "none": no file is open.
 * --also FILE, any number of times: another file is open and mapped meanwhile. --beside FILE: one is open, not mapped.
 * --wait: says "ready", waits for a line, compares again, frees the model, says "freed" and waits for another line.
 *
 * Prints one JSON object: how many tensors are resident and how many have memory of their own, whether every byte is
 * the file's, whether what stands behind rows on a GPU is zeros. Exits with 3 if the plug-in refused the engine, with 4
 * if it gave no memory, with 5 if it refused a tensor, with
 * 6 if a view is wrong. */
#if RF_GGML_API == 2
#include "client/engines/llama/ggml_api2.h"
#else
#include "client/engines/llama/ggml_api3.h"
#endif
#include "daemon/gguf/gguf.h"
#include "kernels/types.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES_MAX 16
#define ALSO_MAX    8
#define EXPORT      __attribute__((visibility("default")))

static struct ggml_backend_device *devices[DEVICES_MAX];
static size_t n_devices;
static const char *version = RF_GGML_API == 2 ? "0.25.3" : "0.26.0";
static const char *how = "map";

static _Noreturn void fail(int status, const char *what)
{
    fprintf(stderr, "stub_host: %s\n", what);
    _exit(status);
}

/* --- what the plug-in looks for --- */

EXPORT const char *ggml_version(void);
EXPORT size_t ggml_tensor_overhead(void);
EXPORT size_t ggml_row_size(int type, int64_t elements);
EXPORT size_t ggml_nbytes(const struct ggml_tensor *tensor);
EXPORT bool ggml_is_quantized(int type);
EXPORT size_t ggml_backend_dev_count(void);
EXPORT struct ggml_backend_device *ggml_backend_dev_get(size_t index);
EXPORT struct ggml_backend_buffer *ggml_backend_buffer_init(struct ggml_backend_buffer_type *buft,
                                                            struct ggml_backend_buffer_i iface, void *context,
                                                            size_t size);
EXPORT void ggml_backend_buffer_free(struct ggml_backend_buffer *buffer);
EXPORT int ggml_graph_n_nodes(void *graph);
EXPORT struct ggml_tensor *ggml_graph_node(void *graph, int i);
EXPORT const char *ggml_op_name(int op);
#if RF_GGML_API >= 3
EXPORT void ggml_backend_buft_alloc_buffer_n(void);
void ggml_backend_buft_alloc_buffer_n(void)
{
}
#endif

const char *ggml_version(void)
{
    return version;
}

size_t ggml_tensor_overhead(void)
{
    return GGML_OBJECT_BYTES + sizeof(struct ggml_tensor);
}

size_t ggml_row_size(int type, int64_t elements)
{
    const struct tensor_type *known = tensor_type_find((uint32_t)type);
    return (size_t)elements / known->block_elements * known->block_bytes;
}

size_t ggml_nbytes(const struct ggml_tensor *tensor)
{
    return ggml_row_size(tensor->type, tensor->ne[0]) * (size_t)(tensor->ne[1] * tensor->ne[2] * tensor->ne[3]);
}

bool ggml_is_quantized(int type)
{
    return tensor_type_find((uint32_t)type)->block_elements > 1;
}

size_t ggml_backend_dev_count(void)
{
    return n_devices;
}

struct ggml_backend_device *ggml_backend_dev_get(size_t index)
{
    return devices[index];
}

struct ggml_backend_buffer *ggml_backend_buffer_init(struct ggml_backend_buffer_type *buft,
                                                     struct ggml_backend_buffer_i iface, void *context, size_t size)
{
    struct ggml_backend_buffer *buffer = calloc(1, sizeof(*buffer));
    *buffer = (struct ggml_backend_buffer){iface, buft, context, size, 0};
    return buffer;
}

void ggml_backend_buffer_free(struct ggml_backend_buffer *buffer)
{
    buffer->iface.free_buffer(buffer);
    free(buffer);
}

int ggml_graph_n_nodes(void *graph)
{
    (void)graph;
    return 0;
}

struct ggml_tensor *ggml_graph_node(void *graph, int i)
{
    (void)graph, (void)i;
    return NULL;
}

const char *ggml_op_name(int op)
{
    (void)op;
    return "";
}

/* --- the CPU --- */

static const char *cpu_name(struct ggml_backend_device *device)
{
    (void)device;
    return "CPU";
}

static int cpu_type(struct ggml_backend_device *device)
{
    (void)device;
    return GGML_DEVICE_CPU;
}

static void cpu_free(struct ggml_backend_buffer *buffer)
{
    free(buffer->context);
}

static void *cpu_base(struct ggml_backend_buffer *buffer)
{
    return buffer->context;
}

static void cpu_set(struct ggml_backend_buffer *buffer, struct ggml_tensor *tensor, const void *data, size_t offset,
                    size_t size)
{
    (void)buffer;
    memcpy((char *)tensor->data + offset, data, size);
}

static void cpu_get(struct ggml_backend_buffer *buffer, const struct ggml_tensor *tensor, void *data, size_t offset,
                    size_t size)
{
    (void)buffer;
    memcpy(data, (const char *)tensor->data + offset, size);
}

static struct ggml_backend_buffer *cpu_alloc(struct ggml_backend_buffer_type *buft, size_t size)
{
    const struct ggml_backend_buffer_i iface = {
        .free_buffer = cpu_free, .get_base = cpu_base, .set_tensor = cpu_set, .get_tensor = cpu_get};
    return ggml_backend_buffer_init(buft, iface, malloc(size), size);
}

static const char *cpu_buft_name(struct ggml_backend_buffer_type *buft)
{
    (void)buft;
    return "CPU";
}

static size_t cpu_alignment(struct ggml_backend_buffer_type *buft)
{
    (void)buft;
    return 64;
}

static struct ggml_backend_buffer_type cpu_buft = {
    .iface = {.get_name = cpu_buft_name, .alloc_buffer = cpu_alloc, .get_alignment = cpu_alignment},
};

static struct ggml_backend_buffer_type *cpu_buffer_type(struct ggml_backend_device *device)
{
    (void)device;
    return &cpu_buft;
}

static bool not_numa(void)
{
    return false;
}

static void *cpu_proc_address(struct ggml_backend_reg *reg, const char *name)
{
    bool (*function)(void) = not_numa;
    void *address;
    (void)reg;
    memcpy(&address, &function, sizeof(address));
    return strcmp(name, "ggml_backend_cpu_is_numa") == 0 ? address : NULL;
}

static const char *cpu_reg_name(struct ggml_backend_reg *reg)
{
    (void)reg;
    return "CPU";
}

static struct ggml_backend_reg cpu_reg = {
    .api_version = GGML_API_VERSION,
    .iface = {.get_name = cpu_reg_name, .get_proc_address = cpu_proc_address},
};

static struct ggml_backend_device cpu = {
    .iface = {.get_name = cpu_name, .get_type = cpu_type, .get_buffer_type = cpu_buffer_type},
    .reg = &cpu_reg,
};

/* --- the engine --- */

static void load_backend(const char *path)
{
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL), *address;
    struct ggml_backend_reg *(*init)(void);
    if (!object || !(address = dlsym(object, "ggml_backend_init")))
        fail(2, dlerror());
    memcpy(&init, &address, sizeof(address));
    struct ggml_backend_reg *reg = init();
    if (!reg || reg->api_version != cpu_reg.api_version)
        fail(3, "the backend refused");
    for (size_t i = 0; i < reg->iface.get_device_count(reg) && n_devices < DEVICES_MAX; i++)
        devices[n_devices++] = reg->iface.get_device(reg, i);
}

static struct ggml_backend_buffer_type *find_type(const char *name)
{
    for (size_t i = 0; i < n_devices; i++) {
        struct ggml_backend_buffer_type *buft = devices[i]->iface.get_buffer_type(devices[i]);
        if (strcmp(buft->iface.get_name(buft), name) == 0)
            return buft;
    }
    fail(2, "there is no such buffer type");
}

static bool asks_numa(void)
{
    bool (*function)(void);
    void *address = cpu_reg.iface.get_proc_address(&cpu_reg, "ggml_backend_cpu_is_numa");
    memcpy(&function, &address, sizeof(address));
    return function();
}

struct file {
    int fd;
    size_t size;
    unsigned char *bytes; /* mapped, or read */
    unsigned char *copy;  /* to compare with */
    struct model_header *header;
};

static void open_file(const char *path, struct file *ret)
{
    struct stat status;
    struct header_fault fault;
    ret->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (ret->fd < 0 || fstat(ret->fd, &status) < 0 ||
        gguf_read(ret->fd, (uint64_t)status.st_size, &ret->header, &fault) < 0)
        fail(2, "the file cannot be read");
    ret->size = (size_t)status.st_size;
    ret->copy = malloc(ret->size);
    if (pread(ret->fd, ret->copy, ret->size, 0) != (ssize_t)ret->size)
        fail(2, "the file cannot be read");
    ret->bytes = strcmp(how, "read") == 0 || strcmp(how, "none") == 0
                     ? ret->copy
                     : mmap(NULL, ret->size, PROT_READ, MAP_SHARED, ret->fd, 0);
    if (strcmp(how, "none") == 0)
        close(ret->fd);
}

static struct ggml_tensor *make_tensors(const struct model_header *header)
{
    struct ggml_tensor *tensors = calloc(header->n_tensors, sizeof(*tensors));
    for (size_t i = 0; i < header->n_tensors; i++) {
        const struct header_tensor *of = &header->tensors[i];
        tensors[i].type = (int)of->type->id;
        for (size_t k = 0; k < 4; k++)
            tensors[i].ne[k] = (int64_t)of->ne[k];
        snprintf(tensors[i].name, sizeof(tensors[i].name), "%s", of->name);
    }
    return tensors;
}

static size_t room(struct ggml_backend_buffer_type *buft, const struct ggml_tensor *tensor)
{
    size_t size = buft->iface.get_alloc_size ? buft->iface.get_alloc_size(buft, tensor) : ggml_nbytes(tensor);
    return (size + 255) / 256 * 256;
}

static struct ggml_backend_buffer *allocate(struct ggml_backend_buffer_type *buft, struct ggml_tensor *tensors,
                                            size_t n)
{
    size_t size = 0;
    for (size_t i = 0; i < n; i++)
        size += room(buft, &tensors[i]);
    struct ggml_backend_buffer *buffer = buft->iface.alloc_buffer(buft, size);
    if (!buffer)
        fail(4, "no memory was given");
    unsigned char *at = buffer->iface.get_base(buffer);
    for (size_t i = 0; i < n; i++) {
        tensors[i].buffer = buffer;
        tensors[i].data = at;
        at += room(buft, &tensors[i]);
        if (buffer->iface.init_tensor && buffer->iface.init_tensor(buffer, &tensors[i]) != GGML_STATUS_SUCCESS)
            fail(5, "a tensor was refused");
    }
    buffer->usage = 1;
    return buffer;
}

static void set(struct ggml_tensor *tensor, const unsigned char *bytes)
{
    size_t size = ggml_nbytes(tensor), half = size / 2;
    struct ggml_backend_buffer *buffer = tensor->buffer;
    if (strcmp(how, "parts") == 0) {
        buffer->iface.set_tensor(buffer, tensor, bytes, 0, half);
        buffer->iface.set_tensor(buffer, tensor, bytes + half, half, size - half);
    } else
        buffer->iface.set_tensor(buffer, tensor, bytes, 0, size);
}

/* A view of the later half of a tensor's rows. It has the address that the tensor has now, as ggml makes views. */
static bool make_view(struct ggml_tensor *tensor, struct ggml_tensor *ret)
{
    if (tensor->ne[1] < 2)
        return false;
    int64_t rows = tensor->ne[1] / 2;
    *ret = *tensor;
    ret->ne[1] = rows;
    ret->ne[2] = ret->ne[3] = 1;
    ret->view_src = tensor;
    ret->view_offs = (size_t)rows * ggml_row_size(tensor->type, tensor->ne[0]);
    ret->data = (char *)tensor->data + ret->view_offs;
    snprintf(ret->name, sizeof(ret->name), "a view");
    return ret->buffer->iface.init_tensor(ret->buffer, ret) == GGML_STATUS_SUCCESS;
}

static struct ggml_tensor *make_views(struct ggml_tensor *tensors, size_t n)
{
    struct ggml_tensor *views = calloc(n, sizeof(*views));
    for (size_t i = 0; i < n; i++)
        (void)make_view(&tensors[i], &views[i]);
    return views;
}

/* Writes to the first view, and compares all of them. */
static void use_views(const struct file *file, const struct ggml_tensor *tensors, struct ggml_tensor *views)
{
    bool written = false;
    for (size_t i = 0; i < file->header->n_tensors; i++) {
        struct ggml_tensor *view = &views[i];
        if (!view->view_src)
            continue;
        size_t size = ggml_nbytes(view);
        unsigned char *want = file->copy + file->header->tensors[i].offset + view->view_offs, *have = malloc(size);
        if (!written) {
            memset(want, 0x3c, size);
            view->buffer->iface.set_tensor(view->buffer, view, want, 0, size);
            written = true;
            if (view->data != (char *)tensors[i].data + view->view_offs)
                fail(6, "the view that was set does not point into its tensor");
        }
        view->buffer->iface.get_tensor(view->buffer, view, have, 0, size);
        if (memcmp(have, want, size) != 0)
            fail(6, "a view has other bytes than its tensor");
        free(have);
    }
    free(views);
}

static bool same(const struct file *file, const struct ggml_tensor *tensors)
{
    for (size_t i = 0; i < file->header->n_tensors; i++) {
        size_t size = ggml_nbytes(&tensors[i]);
        unsigned char *bytes = malloc(size);
        tensors[i].buffer->iface.get_tensor(tensors[i].buffer, &tensors[i], bytes, 0, size);
        bool equal = memcmp(bytes, file->copy + file->header->tensors[i].offset, size) == 0;
        free(bytes);
        if (!equal)
            return false;
    }
    return true;
}

/* Memory of the stand-in for a GPU is the host's. */
static bool padded(const struct file *file, const struct ggml_tensor *tensors)
{
    for (size_t i = 0; i < file->header->n_tensors; i++) {
        struct ggml_backend_buffer_type *buft = tensors[i].buffer->buft;
        size_t size = ggml_nbytes(&tensors[i]);
        size_t all = buft->iface.get_alloc_size ? buft->iface.get_alloc_size(buft, &tensors[i]) : size;
        for (const unsigned char *at = (const unsigned char *)tensors[i].data + size; size < all; size++, at++)
            if (*at != 0)
                return false;
    }
    return true;
}

static void tell(const struct file *file, const struct ggml_tensor *tensors, const char *type, bool numa)
{
    size_t resident = 0, n = file->header->n_tensors;
    for (size_t i = 0; i < n; i++) {
        /* A page that is mapped from a memory file or another process's is no page of the heap: maps tell. */
        FILE *maps = fopen("/proc/self/maps", "re");
        char line[4096];
        while (maps && fgets(line, sizeof(line), maps)) {
            unsigned long start, end;
            if (sscanf(line, "%lx-%lx", &start, &end) == 2 && (uintptr_t)tensors[i].data >= start &&
                (uintptr_t)tensors[i].data < end)
                resident += strstr(line, "/memfd:") || strstr(line, "/dev/shm/") || strstr(line, "rw-s") != NULL;
        }
        if (maps)
            fclose(maps);
    }
    printf("{\"type\": \"%s\", \"tensors\": %zu, \"resident\": %zu, \"same\": %s, \"padded\": %s, \"numa\": %s}\n",
           type, n, resident, same(file, tensors) ? "true" : "false", padded(file, tensors) ? "true" : "false",
           numa ? "true" : "false");
    fflush(stdout);
}

static void wait_after(const char *word)
{
    char line[16];
    puts(word);
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        fail(2, "nobody says when to go on");
}

int main(int argc, char **argv)
{
    const char *type = "ROCmForge", *also[ALSO_MAX], *beside = NULL;
    size_t n_also = 0;
    bool waits = false;
    if (argc < 3)
        fail(2, "usage: stub_host PLUGIN MODEL [OPTION]...");
    devices[n_devices++] = &cpu;
    cpu_buft.device = &cpu;
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--wait") == 0)
            waits = true;
        else if (i + 1 == argc)
            fail(2, "a value is missing");
        else if (strcmp(argv[i], "--gpu") == 0)
            load_backend(argv[++i]);
        else if (strcmp(argv[i], "--type") == 0)
            type = argv[++i];
        else if (strcmp(argv[i], "--version") == 0)
            version = argv[++i];
        else if (strcmp(argv[i], "--api") == 0)
            cpu_reg.api_version = atoi(argv[++i]);
        else if (strcmp(argv[i], "--how") == 0)
            how = argv[++i];
        else if (strcmp(argv[i], "--also") == 0 && n_also < ALSO_MAX)
            also[n_also++] = argv[++i];
        else if (strcmp(argv[i], "--beside") == 0)
            beside = argv[++i];
        else
            fail(2, "there is no such option");
    }
    load_backend(argv[1]);
    struct ggml_backend_buffer_type *buft = find_type(type);
    struct file file, other;
    bool numa = asks_numa();
    if (beside && open(beside, O_RDONLY | O_CLOEXEC) < 0)
        fail(2, "the file beside cannot be opened");
    for (size_t i = 0; i < n_also; i++)
        open_file(also[i], &other); /* and it stays */
    open_file(argv[2], &file);
    struct ggml_tensor *tensors = make_tensors(file.header);
    struct ggml_backend_buffer *buffer = allocate(buft, tensors, file.header->n_tensors);
    struct ggml_tensor *views = strcmp(how, "views") == 0 ? make_views(tensors, file.header->n_tensors) : NULL;
    if (strcmp(how, "early") == 0) {
        unsigned char part[16];
        buffer->iface.get_tensor(buffer, &tensors[0], part, 0, sizeof(part));
    }
    const unsigned char *from = strcmp(how, "copy") == 0 ? file.copy : file.bytes;
    for (int round = 0; round < (strcmp(how, "twice") == 0 ? 2 : 1); round++)
        for (size_t i = 0; i < file.header->n_tensors; i++)
            set(&tensors[i], from + file.header->tensors[i].offset);
    if (strcmp(how, "write") == 0) {
        unsigned char *first = file.copy + file.header->tensors[0].offset;
        memset(first, 0x3c, 64);
        buffer->iface.set_tensor(buffer, &tensors[0], first, 0, 64);
    }
    if (views)
        use_views(&file, tensors, views);
    if (file.bytes != file.copy) { /* llama.cpp lets go of the file now */
        munmap(file.bytes, file.size);
        close(file.fd);
    }
    tell(&file, tensors, buffer->buft->iface.get_name(buffer->buft), numa);
    /* An adapter, when the file is closed. */
    struct ggml_backend_buffer *adapter = beside ? NULL : buft->iface.alloc_buffer(buft, 4096);
    if (adapter)
        ggml_backend_buffer_free(adapter);
    if (waits) {
        wait_after("ready");
        tell(&file, tensors, buffer->buft->iface.get_name(buffer->buft), numa);
    }
    ggml_backend_buffer_free(buffer);
    if (waits)
        wait_after("freed");
    model_header_free(file.header);
    free(tensors);
    free(file.copy);
    return 0;
}
