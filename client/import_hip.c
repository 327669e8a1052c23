/* Memory of a GPU, opened through the handle that the daemon made: import-hip.so and, from the same source against
 * CUDA's runtime, import-cuda.so.
 *
 * The runtime belongs to the whole process, and the program may use it too: the device that is current on the calling
 * thread is put back before every return, and nothing is reset. */
#include "client/import.h"
#include "daemon/hip.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A handle that is open in this process. Opened again, the runtime may give the same pointer, and the first close would
 * take it away: so each is opened once, and counted. */
struct opened {
    struct opened *next;
    hipIpcMemHandle_t handle;
    int device;
    void *data;
    size_t references;
};

struct mapping {
    struct import_mapping mapping;
    struct opened *opened;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the list, and what is on it */
static struct opened *list;

static int failed(struct import_fault *fault, int error, const char *call, hipError_t result)
{
    return import_fail(fault, error, "%s: %s (%d)", call, hipGetErrorString(result), (int)result);
}

/* Makes a device current, and remembers which was. */
static hipError_t device_enter(int device, int *ret_before)
{
    hipError_t result = hipGetDevice(ret_before);
    return result == hipSuccess && *ret_before != device ? hipSetDevice(device) : result;
}

static void device_leave(int device, int before)
{
    if (before != device)
        (void)!hipSetDevice(before);
}

/* Whether a device of this process is the one that the daemon means. */
static hipError_t device_is(int device, const struct import_source *source, bool *ret)
{
    hipUUID uuid;
    char text[HIP_UUID_SIZE], pci[32] = "";
    hipError_t result = hipDeviceGetUuid(&uuid, device);
    if (result == hipSuccess)
        result = hipDeviceGetPCIBusId(pci, (int)sizeof(pci), device);
    if (result != hipSuccess)
        return result;
    hip_uuid_text(&uuid, text);
    *ret = (source->uuid || source->pci) && (!source->uuid || strcasecmp(text, source->uuid) == 0) &&
           (!source->pci || strcasecmp(pci, source->pci) == 0);
    return hipSuccess;
}

/* Devices are counted anew in every process, and HIP_VISIBLE_DEVICES hides some: only identity tells. */
static int device_find(const struct import_source *source, int *ret, struct import_fault *fault)
{
    int count = 0;
    hipError_t result = hipGetDeviceCount(&count);
    if (result != hipSuccess)
        return failed(fault, -ENODEV, HIP_NAME(GetDeviceCount), result);
    for (int i = 0; i < count; i++) {
        bool found = false;
        result = device_is(i, source, &found);
        if (result != hipSuccess)
            return failed(fault, -EIO, HIP_NAME(DeviceGetUuid), result);
        if (found) {
            *ret = i;
            return 0;
        }
    }
    return import_fail(fault, -ENODEV, "this process does not see the device %s (%s); it sees %d others",
                       source->device ? source->device : "", source->pci ? source->pci : "no PCI address", count);
}

/* With `lock` held. */
static int handle_open(int device, const hipIpcMemHandle_t *handle, struct opened **ret, struct import_fault *fault)
{
    for (struct opened *opened = list; opened; opened = opened->next)
        if (opened->device == device && memcmp(&opened->handle, handle, sizeof(*handle)) == 0) {
            opened->references++;
            *ret = opened;
            return 0;
        }
    struct opened *opened = calloc(1, sizeof(*opened));
    if (!opened)
        return import_fail(fault, -ENOMEM, "out of memory");
    int before;
    hipError_t result = device_enter(device, &before);
    if (result == hipSuccess) {
        result = hipIpcOpenMemHandle(&opened->data, *handle, hipIpcMemLazyEnablePeerAccess);
        device_leave(device, before);
    }
    if (result != hipSuccess) {
        free(opened);
        return failed(fault, result == hipErrorOutOfMemory ? -ENOMEM : -EIO, HIP_NAME(IpcOpenMemHandle), result);
    }
    opened->handle = *handle;
    opened->device = device;
    opened->references = 1;
    opened->next = list;
    list = opened;
    *ret = opened;
    return 0;
}

/* With `lock` held. Work that still reads the memory ends first. */
static void handle_close(struct opened *opened)
{
    if (--opened->references > 0)
        return;
    for (struct opened **at = &list; *at; at = &(*at)->next)
        if (*at == opened) {
            *at = opened->next;
            break;
        }
    int before;
    if (device_enter(opened->device, &before) == hipSuccess) {
        (void)!hipDeviceSynchronize();
        (void)!hipIpcCloseMemHandle(opened->data);
        device_leave(opened->device, before);
    }
    free(opened);
}

static int import_open(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault)
{
    hipIpcMemHandle_t handle;
    if (!source->handle || source->handle_size != sizeof(handle))
        return import_fail(ret_fault, -EPROTO, "a handle of %zu bytes, not %zu",
                           source->handle ? source->handle_size : 0, sizeof(handle));
    memcpy(&handle, source->handle, sizeof(handle));
    int device = -1;
    int r = device_find(source, &device, ret_fault);
    if (r < 0)
        return r;
    struct mapping *mapping = calloc(1, sizeof(*mapping));
    if (!mapping)
        return import_fail(ret_fault, -ENOMEM, "out of memory");
    pthread_mutex_lock(&lock);
    r = handle_open(device, &handle, &mapping->opened, ret_fault);
    pthread_mutex_unlock(&lock);
    if (r < 0) {
        free(mapping);
        return r;
    }
    mapping->mapping.data = mapping->opened->data;
    *ret = &mapping->mapping;
    return 0;
}

static void import_close(struct import_mapping *base)
{
    struct mapping *mapping = (struct mapping *)base;
    if (!mapping)
        return;
    pthread_mutex_lock(&lock);
    handle_close(mapping->opened);
    pthread_mutex_unlock(&lock);
    free(mapping);
}

static int import_read(struct import_mapping *base, uint64_t offset, void *dst, size_t size,
                       struct import_fault *ret_fault)
{
    const struct mapping *mapping = (const struct mapping *)base;
    int before;
    hipError_t result = device_enter(mapping->opened->device, &before);
    if (result != hipSuccess)
        return failed(ret_fault, -EIO, HIP_NAME(SetDevice), result);
    result = hipMemcpy(dst, (const uint8_t *)mapping->mapping.data + offset, size, hipMemcpyDeviceToHost);
    device_leave(mapping->opened->device, before);
    return result == hipSuccess ? 0 : failed(ret_fault, -EIO, HIP_NAME(Memcpy), result);
}

__attribute__((visibility("default"))) extern const struct import_module rocmforge_import_module;

const struct import_module rocmforge_import_module = {
    .abi = IMPORT_ABI,
    .kind = HIP_KIND,
    .open = import_open,
    .close = import_close,
    .read = import_read,
};
