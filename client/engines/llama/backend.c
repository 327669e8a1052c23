/* The registry that ggml gets from us. It has one device for each memory that weights can be in. ROCmForge is the first
 * GPU, or the host if there is no GPU. ROCmForge1, ROCmForge2 and so on are further GPUs. ROCmForge_Host is the
 * host. */
#include "client/engines/llama/backend.h"

#include "client/engines/llama/say.h"
#include "client/engines/llama/weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACES_MAX       17u
#define COMMAND_LINE_MAX (1u << 20)

static struct place places[PLACES_MAX];
static size_t n_places;
static struct ggml_backend_reg registry;

/* --- the devices --- */

static struct place *place_of(struct ggml_backend_device *device)
{
    return device->context;
}

static const char *device_get_name(struct ggml_backend_device *device)
{
    return place_of(device)->name;
}

static const char *device_get_description(struct ggml_backend_device *device)
{
    return place_of(device)->pci[0] ? "weights that rocmforged keeps on a GPU" : "weights that rocmforged keeps";
}

static void device_get_memory(struct ggml_backend_device *device, size_t *free, size_t *total)
{
    (void)device;
    *free = *total = 0;
}

static int device_get_type(struct ggml_backend_device *device)
{
    (void)device;
    return GGML_DEVICE_CPU;
}

static void device_get_props(struct ggml_backend_device *device, struct ggml_backend_dev_props *props)
{
    *props = (struct ggml_backend_dev_props){
        .name = device_get_name(device),
        .description = device_get_description(device),
        .type = GGML_DEVICE_CPU,
        .caps = {.mmap_support = true},
    };
}

static void *device_init_backend(struct ggml_backend_device *device, const char *parameters)
{
    (void)parameters;
    say("%s is memory for weights (-ot '.*=%s'), nothing is computed on it", place_of(device)->name,
        place_of(device)->name);
    return NULL;
}

static struct ggml_backend_buffer_type *device_get_buffer_type(struct ggml_backend_device *device)
{
    return &place_of(device)->buft;
}

static bool device_supports_op(struct ggml_backend_device *device, const struct ggml_tensor *op)
{
    (void)device, (void)op;
    return false;
}

static bool device_supports_buft(struct ggml_backend_device *device, struct ggml_backend_buffer_type *buft)
{
    (void)device, (void)buft;
    return false;
}

static const struct ggml_backend_device_i device_interface = {
    .get_name = device_get_name,
    .get_description = device_get_description,
    .get_memory = device_get_memory,
    .get_type = device_get_type,
    .get_props = device_get_props,
    .init_backend = device_init_backend,
    .get_buffer_type = device_get_buffer_type,
    .supports_op = device_supports_op,
    .supports_buft = device_supports_buft,
};

/* --- host memory --- */

static const char *host_get_name(struct ggml_backend_buffer_type *buft)
{
    return ((struct place *)buft->context)->name;
}

static size_t host_get_alignment(struct ggml_backend_buffer_type *buft)
{
    struct ggml_backend_buffer_type *real = ((struct place *)buft->context)->real;
    return real->iface.get_alignment(real);
}

static bool host_is_host(struct ggml_backend_buffer_type *buft)
{
    (void)buft;
    return true;
}

static void host_make(struct place *place, struct ggml_backend_device *cpu)
{
    place->real = cpu->iface.get_buffer_type(cpu);
    place->buft = (struct ggml_backend_buffer_type){
        .iface =
            {
                .get_name = host_get_name,
                .alloc_buffer = buffer_alloc,
                .get_alignment = host_get_alignment,
                .is_host = host_is_host,
            },
        .device = &place->device,
        .context = place,
    };
}

/* --- the registry --- */

static const char *registry_get_name(struct ggml_backend_reg *reg)
{
    (void)reg;
    return "ROCmForge";
}

static size_t registry_get_device_count(struct ggml_backend_reg *reg)
{
    (void)reg;
    return n_places;
}

static struct ggml_backend_device *registry_get_device(struct ggml_backend_reg *reg, size_t index)
{
    (void)reg;
    return &places[index].device;
}

static void *registry_get_proc_address(struct ggml_backend_reg *reg, const char *name)
{
    (void)reg, (void)name;
    return NULL;
}

/* --- reading ahead --- */

/* llama.cpp makes the kernel read a whole file that it maps, and waits for that. With resident weights this is a waste,
 * because these bytes are not used. On a NUMA machine llama.cpp does not do it. It asks the CPU's registry whether the
 * machine is NUMA, and uses the answer only for this. So we answer yes while a model is loaded for us. On NUMA
 * llama.cpp also advises the kernel that access is random; buffer.c takes that advice back if bytes of the file are
 * read after all. With ROCMFORGE_PREFETCH=1 we do not change the answer. */
static void *(*cpu_get_proc_address)(struct ggml_backend_reg *reg, const char *name);
static bool (*cpu_is_numa)(void);

/* Whether a file of /proc with NUL-terminated strings has a name of our buffer types, as in "-ot .*=ROCmForge". Does
 * not look for the "=", because llama-bench overwrites it. */
static bool names_us(const char *path)
{
    static char text[COMMAND_LINE_MAX];
    FILE *file = fopen(path, "re");
    size_t n = file ? fread(text, 1, sizeof(text), file) : 0;
    if (file)
        fclose(file);
    return n > 0 && memmem(text, n, "ROCmForge", 9) != NULL;
}

static bool loads_for_us(void)
{
    const char *overrides = getenv("LLAMA_ARG_OVERRIDE_TENSOR");
    return names_us("/proc/self/cmdline") || (overrides && strstr(overrides, "ROCmForge"));
}

static bool is_numa_or_ours(void)
{
    return (cpu_is_numa && cpu_is_numa()) || (loads_for_us() && weights_daemon_answers());
}

static void *answer_for_cpu(struct ggml_backend_reg *reg, const char *name)
{
    void *address = cpu_get_proc_address(reg, name);
    if (!address || strcmp(name, "ggml_backend_cpu_is_numa") != 0)
        return address;
    memcpy(&cpu_is_numa, &address, sizeof(address));
    bool (*answer)(void) = is_numa_or_ours;
    memcpy(&address, &answer, sizeof(address));
    return address;
}

static void prefetch_avoid(struct ggml_backend_device *cpu)
{
    const char *value = getenv("ROCMFORGE_PREFETCH");
    struct ggml_backend_reg *reg = cpu->reg;
    if ((value && strcmp(value, "1") == 0) || !reg->iface.get_proc_address || cpu_get_proc_address ||
        !reg->iface.get_proc_address(reg, "ggml_backend_cpu_is_numa") ||
        !open_files_writable(&reg->iface.get_proc_address))
        return;
    cpu_get_proc_address = reg->iface.get_proc_address;
    reg->iface.get_proc_address = answer_for_cpu;
}

/* --- the start --- */

static struct place *place_add(const struct engine *engine, const char *name)
{
    struct place *place = &places[n_places++];
    place->engine = engine;
    place->device = (struct ggml_backend_device){.iface = device_interface, .reg = &registry, .context = place};
    snprintf(place->name, sizeof(place->name), "%s", name);
    return place;
}

static bool is_cuda_or_hip(struct ggml_backend_device *device)
{
    const char *name = device->reg->iface.get_name(device->reg);
    int type = device->iface.get_type(device);
    return (type == GGML_DEVICE_GPU || type == GGML_DEVICE_IGPU) &&
           (strcmp(name, "CUDA") == 0 || strcmp(name, "ROCm") == 0);
}

static void gpu_add(const struct engine *engine, struct ggml_backend_device *gpu)
{
    char name[sizeof(places[0].name)] = "ROCmForge";
    if (n_places == PLACES_MAX - 1) {
        say("the engine has more than %u GPUs: weights on %s are not shared", PLACES_MAX - 1, gpu->iface.get_name(gpu));
        return;
    }
    if (n_places > 0)
        snprintf(name, sizeof(name), "ROCmForge%zu", n_places);
    if (!gpu_wrap(place_add(engine, name), gpu))
        n_places--;
}

struct ggml_backend_reg *backend_start(const struct engine *engine)
{
    struct ggml_backend_device *cpu = NULL;
    for (size_t i = 0; i < engine->dev_count(); i++) {
        struct ggml_backend_device *device = engine->dev_get(i);
        if (is_cuda_or_hip(device))
            gpu_add(engine, device);
        else if (device->iface.get_type(device) == GGML_DEVICE_CPU && !cpu)
            cpu = device;
    }
    if (!cpu) {
        say("the engine has no CPU backend, so it cannot use shared weights: is libggml-cpu*.so beside it?");
        return NULL;
    }
    if (n_places == 0)
        host_make(place_add(engine, "ROCmForge"), cpu);
    host_make(place_add(engine, "ROCmForge_Host"), cpu);
    prefetch_avoid(cpu);
    registry = (struct ggml_backend_reg){
        .api_version = GGML_API_VERSION,
        .iface = {registry_get_name, registry_get_device_count, registry_get_device, registry_get_proc_address},
    };
    return &registry;
}
