/* The GPU module: finds and opens devices, measures the link to each, and makes slots. */
#include "daemon/device/hip/arena.h"
#include "daemon/device/hip/error.h"
#include "daemon/device/hip/kernels.h"
#include "daemon/device/hip/queue.h"
#include "daemon/device/hip/reader.h"
#include "daemon/device/hip/trial.h"
#include "daemon/device/hip/work.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STAGING_BYTES ((uint64_t)DEVICE_STAGING_DEFAULT_MIB << 20)
/* Between two copies the bus is idle for a moment, so smaller slots cost more. */
#define SLOT_BYTES     ((size_t)16 << 20)
#define SLOT_BYTES_MIN ((size_t)64 << 10)
/* Default: one slot that is being filled, one that is being copied, and one that waits. And the largest number that
 * a setting can ask for. */
#define SLOTS_DEFAULT 3u
#define SLOTS_MAX     64u
/* How much of a slot a worker reads or decodes at a time. Small parts, so that workers finish a slot at about the
 * same time. */
#define PART_BYTES ((size_t)256 << 10)

#define GRANULE    ((uint64_t)2 << 20)

/* How the link is measured: LINK_COPIES copies in a row, at least twice and for at least LINK_NS. A link that was
 * idle may need some time to reach its full rate. */
#define LINK_BYTES  ((size_t)16 << 20)
#define LINK_COPIES 4
#define LINK_NS     30000000u

static int slot_init(struct device *device, struct slot *slot, struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    int r = hip_enter(hip, ret_fault);
    if (r < 0)
        return r;
    struct slot_hip *own = calloc(1, sizeof(*own));
    if (!own)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    const size_t scratch_bytes = hip_scratch_bytes(slot->size);
    uint8_t *pinned = NULL;
    /* One allocation for the data and for the word that the device sets, which comes after the data. */
    r = HIP_CALL(hip, ret_fault, HostMalloc,
                 ((void **)&pinned, slot->size + sizeof(*own->overflowed), hipHostMallocDefault));
    if (r < 0)
        goto fail;
    own->overflowed = (uint32_t *)(void *)(pinned + slot->size);
    *own->overflowed = 0;
    r = HIP_CALL(hip, ret_fault, HostGetDevicePointer, (&own->overflowed_device, own->overflowed, 0));
    if (r < 0)
        goto fail_pinned;
    r = HIP_CALL(hip, ret_fault, Malloc, (&own->scratch, scratch_bytes + sizeof(*own->overflows)));
    if (r < 0)
        goto fail_pinned;
    own->overflows = (uint64_t *)(void *)((uint8_t *)own->scratch + scratch_bytes);
    r = HIP_CALL(hip, ret_fault, MemsetAsync, (own->overflows, 0, sizeof(*own->overflows), hip->clearing));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, StreamSynchronize, (hip->clearing));
    if (r < 0)
        goto fail_scratch;
    r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&own->copied, hipEventDisableTiming));
    if (r < 0)
        goto fail_scratch;
    r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&own->copied_at, hipEventDefault));
    if (r < 0)
        goto fail_copied;
    r = HIP_CALL(hip, ret_fault, EventCreateWithFlags, (&own->ended, hipEventDefault));
    if (r < 0)
        goto fail_copied_at;
    slot->data = pinned;
    slot->module = own;
    return 0;

fail_copied_at:
    (void)!hipEventDestroy(own->copied_at);
fail_copied:
    (void)!hipEventDestroy(own->copied);
fail_scratch:
    (void)!hipFree(own->scratch);
fail_pinned:
    (void)!hipHostFree(pinned);
fail:
    free(own);
    return r;
}

static void slot_fini(struct device *device, struct slot *slot)
{
    struct slot_hip *own = slot->module;
    assert(!own->transfer);
    (void)!hipSetDevice(hip_device(device)->index);
    (void)!hipEventDestroy(own->copied);
    (void)!hipEventDestroy(own->copied_at);
    (void)!hipEventDestroy(own->ended);
    (void)!hipFree(own->scratch);
    (void)!hipHostFree(slot->data);
    free(own);
    slot->data = slot->module = NULL;
}

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    size_t available = 0, total = 0;
    int r = hip_enter(hip, ret_fault);
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, MemGetInfo, (&available, &total));
    if (r == 0)
        *ret = available;
    return r;
}

static int host_register(struct device *device, void *memory, size_t bytes, struct device_fault *ret_fault)
{
    struct hip_device *hip = hip_device(device);
    int r = hip_enter(hip, ret_fault);
    return r < 0 ? r : HIP_CALL(hip, ret_fault, HostRegister, (memory, bytes, hipHostRegisterPortable));
}

static void host_unregister(struct device *device, void *memory)
{
    (void)!hipSetDevice(hip_device(device)->index);
    (void)!hipHostUnregister(memory);
}

static bool decodes(struct device *device, const struct tensor_type *type, enum form form)
{
    const struct hip_device *hip = hip_device(device);
    return type->id < HIP_TYPES && form < FORM_COUNT && hip->kernels[type->id][form];
}

static void device_close(struct device *device)
{
    struct hip_device *hip = hip_device(device);
    hip_queue_stop(hip);
    (void)!hipSetDevice(hip->index);
    hip_kernels_unload(hip);
    hip_reader_drop(hip);
    if (hip->word)
        (void)!hipFree(hip->word);
    for (unsigned i = 0; i < hip->n_streams; i++)
        (void)!hipStreamDestroy(hip->streams[i]);
    if (hip->clearing)
        (void)!hipStreamDestroy(hip->clearing);
    if (hip->timing)
        (void)!hipStreamDestroy(hip->timing);
    pthread_cond_destroy(&hip->submitter_wake);
    pthread_cond_destroy(&hip->finisher_wake);
    pthread_mutex_destroy(&hip->lock);
    pthread_mutex_destroy(&hip->reclaim.taking);
    pthread_mutex_destroy(&hip->lost_lock);
    free(hip);
}

static const struct device_ops hip_ops = {
    .close = device_close,
    .slot_init = slot_init,
    .slot_fini = slot_fini,
    .arena_new = hip_arena_new,
    .arena_reuse = hip_arena_reuse,
    .arena_adopt = hip_arena_adopt,
    .arena_free = hip_arena_free,
    .put = hip_put,
    .arena_export = hip_arena_export,
    .arena_lend = hip_arena_lend,
    .arena_seal = hip_arena_seal,
    .arena_read = hip_arena_read,
    .host_register = host_register,
    .host_unregister = host_unregister,
    .arena_save = hip_arena_save,
    .memory_free = memory_free,
    .decodes = decodes,
};

/* AMD's runtime returns an empty name for a board that it does not know. */
static void name_make(struct hip_device *hip)
{
    struct device *device = &hip->device;
    char arch[HIP_ARCH_SIZE];
    hip_architecture(hip->index, arch);
    snprintf(device->name, sizeof(device->name), "%s at %s", *arch ? arch : HIP_VENDOR " GPU", device->pci);
}

static int identify(struct hip_device *hip, struct device_fault *ret_fault)
{
    struct device *device = &hip->device;
    size_t available = 0, total = 0;
    hipUUID uuid = {{0}};
    int r = HIP_CALL(hip, ret_fault, MemGetInfo, (&available, &total));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, DeviceGetName, (device->name, (int)sizeof(device->name), hip->index));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, DeviceGetPCIBusId, (device->pci, (int)sizeof(device->pci), hip->index));
    if (r == 0)
        r = HIP_CALL(hip, ret_fault, DeviceGetUuid, (&uuid, hip->index));
    if (r < 0)
        return r;
    if (!*device->name)
        name_make(hip);
    device->total = total;
    _Static_assert(sizeof(device->uuid) >= HIP_UUID_SIZE, "");
    hip_uuid_text(&uuid, device->uuid);
    return 0;
}

static int link_copies(struct hip_device *hip, unsigned copies, size_t bytes, void *pinned, void *memory,
                       struct device_fault *ret_fault)
{
    const uint64_t start = device_clock_ns(), least = copies ? 0 : LINK_NS;
    copies = copies ? copies : LINK_COPIES;
    uint64_t best = UINT64_MAX;
    for (unsigned run = 0; run < 2 || device_clock_ns() - start < least; run++) {
        const uint64_t begin = device_clock_ns();
        int r = 0;
        for (unsigned i = 0; i < copies && r == 0; i++)
            r = HIP_CALL(hip, ret_fault, MemcpyAsync, (memory, pinned, bytes, hipMemcpyHostToDevice, hip->streams[0]));
        /* Even after an error: other copies may still read the memory that is freed next. */
        hipError_t result = hipStreamSynchronize(hip->streams[0]);
        if (r == 0)
            r = hip_result(hip, result, HIP_NAME(StreamSynchronize), ret_fault);
        if (r < 0)
            return r;
        const uint64_t ns = device_clock_ns() - begin;
        best = min_u64(ns, best);
    }
    hip->device.link = best ? (uint64_t)((double)bytes * copies * 1e9 / (double)best) : 0;
    return 0;
}

static int link_measure(struct hip_device *hip, const struct device_config *config, struct device_fault *ret_fault)
{
    const size_t bytes = config->link_bytes ? config->link_bytes : LINK_BYTES;
    void *pinned = NULL, *memory = NULL;
    int r = HIP_CALL(hip, ret_fault, HostMalloc, (&pinned, bytes, hipHostMallocDefault));
    if (r < 0)
        return r;
    memset(pinned, 0, bytes);
    r = HIP_CALL(hip, ret_fault, Malloc, (&memory, bytes));
    if (r == 0) {
        r = link_copies(hip, config->link_copies, bytes, pinned, memory, ret_fault);
        (void)!hipFree(memory);
    }
    (void)!hipHostFree(pinned);
    return r;
}

/* As many slots as fit into the staging memory. If fewer than three would fit, three smaller ones. */
static void size_slots(struct device *device, const struct device_config *config)
{
    const uint64_t staging = config->staging ? config->staging : STAGING_BYTES;
    const uint64_t slots = staging / SLOT_BYTES;
    const uint64_t bytes = staging / SLOTS_DEFAULT / 4096 * 4096;
    device->part_bytes = PART_BYTES;
    if (slots >= SLOTS_DEFAULT) {
        device->slot_bytes = SLOT_BYTES;
        device->n_slots = slots < SLOTS_MAX ? (unsigned)slots : SLOTS_MAX;
        return;
    }
    device->n_slots = SLOTS_DEFAULT;
    device->slot_bytes = bytes > SLOT_BYTES_MIN ? (size_t)bytes : SLOT_BYTES_MIN;
}

static int streams_make(struct hip_device *hip, unsigned n, struct device_fault *ret_fault)
{
    for (unsigned i = 0; i < n; i++) {
        int r = HIP_CALL(hip, ret_fault, StreamCreateWithFlags, (&hip->streams[i], hipStreamNonBlocking));
        if (r < 0)
            return r;
        hip->n_streams++;
    }
    int r = HIP_CALL(hip, ret_fault, StreamCreateWithFlags, (&hip->clearing, hipStreamNonBlocking));
    if (r < 0) {
        hip->clearing = NULL;
        return r;
    }
    r = HIP_CALL(hip, ret_fault, StreamCreateWithFlags, (&hip->timing, hipStreamNonBlocking));
    if (r < 0)
        hip->timing = NULL;
    return r;
}

static int word_make(struct hip_device *hip, struct device_fault *ret_fault)
{
    void *word;
    int r = HIP_CALL(hip, ret_fault, Malloc, (&word, sizeof(uint64_t)));
    if (r == 0)
        hip->word = word;
    return r;
}

static int device_open(int index, const struct device_config *config, struct hip_device **ret,
                       struct device_fault *ret_fault)
{
    struct hip_device *hip = calloc(1, sizeof(*hip));
    if (!hip)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    hip->index = index;
    hip->device.ops = &hip_ops;
    hip->device.kind = HIP_KIND;
    hip->device.export_kind = EXPORT_IPC;
    hip->device.granule = GRANULE;
    hip->device.copies_async = true;
    snprintf(hip->device.id, sizeof(hip->device.id), HIP_KIND ":%d", index);
    size_slots(&hip->device, config);
    pthread_mutex_init(&hip->lock, NULL);
    hip_reader_init(hip);
    pthread_mutex_init(&hip->reclaim.taking, NULL);
    pthread_mutex_init(&hip->lost_lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&hip->submitter_wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&hip->finisher_wake, NULL);

    int r = hip_enter(hip, ret_fault);
    if (r == 0)
        r = identify(hip, ret_fault);
    if (r == 0)
        r = streams_make(hip, config->streams ? config->streams : DEVICE_STREAMS_DEFAULT, ret_fault);
    if (r == 0)
        r = link_measure(hip, config, ret_fault);
    if (r == 0)
        r = word_make(hip, ret_fault);
    if (r == 0)
        r = hip_reader_make(hip, ret_fault);
    if (r == 0)
        r = hip_kernels_load(hip, ret_fault);
    if (r == 0)
        r = hip_export_try(hip, config->export_wish, config->trial_bytes, ret_fault);
    if (r == 0)
        r = hip_queue_start(hip, ret_fault);
    if (r < 0) {
        device_close(&hip->device);
        return r;
    }
    *ret = hip;
    return 0;
}

/* A device that cannot be opened is left out; the fault describes the last one. */
static int module_open(const struct device_config *config, struct device ***ret, struct device_fault *ret_fault)
{
    assert(config->streams <= DEVICE_STREAMS_MAX);
#if defined(ROCMFORGE_CUDA)
    /* Otherwise the driver loads each kernel at its first launch, in the middle of the first load. rocmforged has set
     * it already, because other threads read the environment by now. */
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
#endif
    int count = 0;
    hipError_t result = hipGetDeviceCount(&count);
    if (result == hipSuccess && count <= 0)
        result = hipErrorNoDevice;
    if (result != hipSuccess) {
        /* No driver, no device, or no right to open it: for the daemon these are the same. */
        char text[HIP_WHY_SIZE];
        return device_fault_set(ret_fault, -ENODEV, HIP_NAME(GetDeviceCount), (int)result, hip_why(result, text));
    }
    struct device **devices = calloc((size_t)count, sizeof(struct device *));
    if (!devices)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    int n = 0;
    for (int i = 0; i < count; i++) {
        struct hip_device *hip = NULL;
        if (device_open(i, config, &hip, ret_fault) == 0)
            devices[n++] = &hip->device;
    }
    if (n == 0) {
        free(devices);
        return -EIO;
    }
    *ret = devices;
    return n;
}

__attribute__((visibility("default"))) extern const struct device_module rocmforge_device_module;

const struct device_module rocmforge_device_module = {
    .abi = DEVICE_ABI,
    .kind = HIP_KIND,
    .open = module_open,
};
