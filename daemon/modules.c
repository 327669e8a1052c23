#include "daemon/modules.h"

#include "daemon/base/log.h"
#include "daemon/base/processors.h"
#include "daemon/device/cgroup.h"
#include "proto/bytes.h"
#include "proto/min.h"
#include "proto/module_path.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Loads the module of a kind. It is never closed: GPU runtimes crash after dlclose(). NULL and a fault on failure. */
static const struct device_module *module_load(const char *kind, struct device_fault *ret_fault)
{
    char path[PATH_MAX];
    if (module_path_find(ROCMFORGE_MODULE_DIR, "device", kind, path) < 0) {
        device_fault_set(ret_fault, -ENOENT, "dlopen", 0, "there is no such module");
        return NULL;
    }
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct device_module *module = object ? dlsym(object, DEVICE_MODULE_SYMBOL) : NULL;
    if (!object)
        device_fault_set(ret_fault, -ENOENT, "dlopen", 0, dlerror());
    else if (!module || module->abi != DEVICE_ABI || strcmp(module->kind, kind) != 0) {
        device_fault_set(ret_fault, -ENOEXEC, "dlopen", 0, "it is no module, or one of another version");
        return NULL;
    }
    return module;
}

static uint64_t budget_of(const struct device *device, const struct budget *budget)
{
    if (budget->set && budget->bytes)
        return min_u64(budget->bytes, device->total);
    unsigned percent = budget->set              ? budget->percent
                       : device_is_host(device) ? HOST_PERCENT_DEFAULT
                                                : GPU_PERCENT_DEFAULT;
    return device->total / 100 * percent;
}

/* Lowers the host's memory to the limit of the daemon's control groups: the kernel kills a process that exceeds it. */
static void bound_host(struct device *device)
{
    struct cgroup_limit limit;
    cgroup_memory_limit("/proc/self/cgroup", "/sys/fs/cgroup", &limit);
    if (limit.bytes >= device->total)
        return;
    char total[BYTES_TEXT_SIZE], limited[BYTES_TEXT_SIZE];
    log_info("device=%s %s, but %s says %s", device->id, bytes_text(total, (double)device->total, ""), limit.file,
             bytes_text(limited, (double)limit.bytes, ""));
    device->total = limit.bytes;
}

/* Bytes of staging memory for a GPU. What was read into it should still be in the caches when the GPU copies it, and
 * the caches have other data, too. So it is half of the caches, if that is less than the usual size. But it is at least
 * STAGING_LEAST_MIB, because otherwise the copies would be small. */
#define STAGING_LEAST_MIB 36
static uint64_t staging_default(void)
{
    const uint64_t most = (uint64_t)DEVICE_STAGING_DEFAULT_MIB << 20, least = (uint64_t)STAGING_LEAST_MIB << 20;
    const uint64_t half = processors_cache("/sys/devices/system/cpu", NULL) / 2;
    if (half == 0 || half > most)
        return most;
    return max_u64(half, least);
}

/* Opens a module's devices and adds them. Returns how many, or a negative errno. */
static int module_open(struct devices *set, const struct device_module *module, const struct options *options,
                       unsigned workers, struct device_fault *ret_fault)
{
    const struct device_config config = {
        .workers = workers,
        .staging = options->staging ? options->staging : staging_default(),
        .streams = options->streams,
        .export_wish = options->export_wish,
        .lock_memory = options->lock_memory,
    };
    struct device **devices = NULL;
    int n = module->open(&config, &devices, ret_fault);
    if (n > 0 && ret_fault->call[0])
        log_warning("a %s device cannot be used: %s: %s (%d)", module->kind, ret_fault->call, ret_fault->text,
                    ret_fault->code);
    int added = 0;
    int error = n < 0 ? n : 0;
    for (int i = 0; i < n; i++) {
        struct device *device = devices[i];
        if (module == &device_host_module)
            bound_host(device);
        device->budget = budget_of(device, &options->budget);
        int r = devices_add(set, device, ret_fault);
        if (r < 0) {
            log_error("device=%s cannot be used: %s: %s (%d)", device->id, ret_fault->call, ret_fault->text,
                      ret_fault->code);
            device->ops->close(device);
            error = r;
            continue;
        }
        char total[BYTES_TEXT_SIZE], budget[BYTES_TEXT_SIZE];
        log_info("device=%s %s: %s, %s for models", device->id, device->name,
                 bytes_text(total, (double)device->total, ""), bytes_text(budget, (double)device->budget, ""));
        if (device->no_kernels[0])
            log_warning("device=%s has no kernels, so the CPU dequantises for it: %s", device->id, device->no_kernels);
        if (device->no_descriptors[0])
            log_info("device=%s exports memory by IPC handle, because descriptors do not work: %s", device->id,
                     device->no_descriptors);
        if (device->exports_leak)
            log_warning("device=%s: memory that was exported does not come back when it is freed: each load takes its "
                        "memory for good, until the daemon is started again",
                        device->id);
        added++;
    }
    free(devices);
    return added > 0 ? added : error;
}

void modules_prepare(void)
{
    /* Otherwise CUDA's driver loads each kernel at its first launch, in the middle of the first load. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
}

bool modules_want_gpus(const struct options *options)
{
    return !device_kind_is_host(options->device);
}

int modules_open_gpus(struct devices *devices, const struct options *options, unsigned workers)
{
    bool automatic = strcmp(options->device, "auto") == 0;
    for (size_t i = 0; device_kinds[i]; i++) {
        const char *kind = device_kinds[i];
        if (device_kind_is_host(kind) || (!automatic && strcmp(options->device, kind) != 0))
            continue;
        struct device_fault fault = {0};
        const struct device_module *module = module_load(kind, &fault);
        int n = module ? module_open(devices, module, options, workers, &fault) : -ENOENT;
        if (n > 0)
            continue;
        if (!automatic) {
            log_error("no %s device: %s: %s (%d)", kind, fault.call, fault.text, fault.code);
            return n < 0 ? n : -ENODEV;
        }
        if (module)
            log_write(n == -ENODEV ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "no %s device: %s: %s (%d)", kind, fault.call,
                      fault.text, fault.code);
        else
            log_debug("no %s device: %s: %s", kind, fault.call, fault.text);
    }
    return 0;
}

int modules_open_host(struct devices *devices, const struct options *options, unsigned workers)
{
    struct device_fault fault = {0};
    int n = module_open(devices, &device_host_module, options, workers, &fault);
    if (n < 0)
        log_error("no host device: %s: %s (%d)", fault.call, fault.text, fault.code);
    return n < 0 ? n : 0;
}
