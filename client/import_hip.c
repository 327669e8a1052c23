/* Opens memory of a GPU through the descriptor or the IPC handle that the daemon made. This source becomes
 * import-hip.so and, compiled against CUDA's runtime, import-cuda.so.
 *
 * Memory that comes by descriptor is mapped read-only. It stays until it is unmapped, even if the daemon ends.
 *
 * The runtime belongs to the whole process, and the program may use it too. It keeps the current device and the last
 * error for each thread. So each function here makes its calls on a new thread, and the caller's thread is not changed.
 * Restoring the caller's device afterwards would not do: on CUDA, making a device current for the first time takes
 * hundreds of megabytes of its memory. Once memory of a device was opened so, CUDA can open more on the caller's thread
 * (hip_here.h): that is quicker by what it takes until another thread runs, a quarter of the whole time.
 *
 * The program may be capturing a stream into a graph at the same time, on any thread. Opening and reading do not
 * disturb that: they use no stream of the program, and their thread is in the relaxed capture mode. Closing waits for
 * the whole device. During a capture a runtime refuses that, and the capture is broken. But there is no other way to
 * know that nothing reads the memory any more. So if it is refused the memory stays mapped, until something else is
 * closed on that device or the same handle is opened again.
 *
 * A runtime does not work in a child after fork(). There, the mappings of the parent are only forgotten. */
#include "client/import.h"
#include "kernels/hip_here.h"
#include "kernels/hip_share.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* No device has so much memory, and a granule more can be counted in 64 bits. */
#define BYTES_MAX (UINT64_MAX / 2)

#define PCI_SIZE  32

/* Memory that is open in this process. If an IPC handle were opened twice, the runtime might return the same pointer
 * twice, and the first close would unmap it for both. So each handle is opened once and its uses are counted. Each
 * descriptor is mapped for itself: nothing tells whether two of them are of the same memory. */
struct opened {
    struct opened *next;
    bool by_descriptor;
    bool writable;            /* if by_descriptor; an IPC handle always gives memory that can be written to */
    int fd;                   /* only while it is being opened; borrowed */
    hipIpcMemHandle_t handle; /* unless by_descriptor */
    struct hip_share share;   /* if by_descriptor: what is mapped. Its size is set before that */
    int device;
    void *data;
    size_t references;           /* 0: to be closed */
    bool busy;                   /* a thread is opening or closing it without the lock; other threads leave it alone */
    const struct hip_here *here; /* it is being opened on the caller's thread; NULL: on one of the module's */
};

/* A device of which this process has opened memory. Never freed. */
struct known {
    struct known *next;
    int device;
    char uuid[HIP_UUID_SIZE], pci[PCI_SIZE];
    struct hip_here here;
};

struct mapping {
    struct import_mapping mapping;
    struct opened *opened;
    hipStream_t stream; /* for reading; NULL: not created yet */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  /* guards the list and its elements */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER; /* an element is no longer busy, or was removed */
static struct opened *list;
static struct known *known;  /* guarded too */
static _Atomic(pid_t) owner; /* the process that uses the runtime; 0: none does yet */

/* The work of one call of the module, which runs on a new thread. */
struct task {
    int (*run)(struct task *task);
    int status;
    struct import_fault *fault;
    const struct import_source *source;
    struct mapping *mapping;
    uint64_t offset;
    void *dst;
    size_t size;
};

static void *task_main(void *argument)
{
    struct task *task = argument;
    task->status = task->run(task);
    return NULL;
}

/* Runs the task on a new thread and returns its result. All signals are blocked on that thread: the program's
 * handlers must not run there. */
static int task_do(struct task *task)
{
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&thread, NULL, task_main, task);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        return import_fail(task->fault, -r, "a thread for the GPU's runtime: %s", strerror(r));
    pthread_join(thread, NULL);
    return task->status;
}

/* Whether this process uses the runtime, or is the first to use it. */
static bool runtime_is_ours(void)
{
    pid_t none = 0, self = getpid();
    return atomic_compare_exchange_strong(&owner, &none, self) || none == self;
}

static int failed(struct import_fault *fault, int error, const char *call, hipError_t result)
{
    return import_fail(fault, error, "%s: %s (%d)", call, hipGetErrorString(result), (int)result);
}

/* Whether a device that says this of itself is the one that the daemon means. */
static bool is_meant(const struct import_source *source, const char *uuid, const char *pci)
{
    return (source->uuid || source->pci) && (!source->uuid || strcasecmp(uuid, source->uuid) == 0) &&
           (!source->pci || strcasecmp(pci, source->pci) == 0);
}

static int device_identify(int device, char ret_uuid[HIP_UUID_SIZE], char ret_pci[PCI_SIZE], struct import_fault *fault)
{
    hipUUID uuid = {{0}};
    hipError_t result = hipDeviceGetUuid(&uuid, device);
    if (result != hipSuccess)
        return failed(fault, -EIO, HIP_NAME(DeviceGetUuid), result);
    *ret_pci = '\0';
    result = hipDeviceGetPCIBusId(ret_pci, PCI_SIZE, device);
    if (result != hipSuccess)
        return failed(fault, -EIO, HIP_NAME(DeviceGetPCIBusId), result);
    hip_uuid_text(&uuid, ret_uuid);
    return 0;
}

/* Devices are identified by UUID and PCI address: their numbers differ between processes, because
 * HIP_VISIBLE_DEVICES hides some. A device whose identity cannot be read is an error only if no other device
 * matches. */
static int device_find(const struct import_source *source, int *ret, struct import_fault *fault)
{
    int count = 0, r = 0;
    char buffer[HIP_WHY_SIZE];
    hipError_t result = hipGetDeviceCount(&count);
    if (result != hipSuccess)
        return import_fail(fault, -ENODEV, "%s: %s (%d)", HIP_NAME(GetDeviceCount), hip_why(result, buffer),
                           (int)result);
    for (int i = 0; i < count; i++) {
        char uuid[HIP_UUID_SIZE], pci[PCI_SIZE];
        int error = device_identify(i, uuid, pci, fault);
        if (error == 0 && is_meant(source, uuid, pci)) {
            *ret = i;
            return 0;
        }
        if (error < 0)
            r = error;
    }
    if (r < 0)
        return r;
    return import_fail(fault, -ENODEV, "this process does not see the device %s (%s); it sees %d others",
                       source->device ? source->device : "", source->pci ? source->pci : "no PCI address", count);
}

/* Makes the device current on this thread, and puts the thread into the mode in which another thread's capture
 * forbids no call. */
static hipError_t device_use(int device, const char **ret_call)
{
    hipStreamCaptureMode mode = hipStreamCaptureModeRelaxed;
    *ret_call = HIP_NAME(SetDevice);
    hipError_t result = hipSetDevice(device);
    if (result != hipSuccess)
        return result;
    *ret_call = HIP_NAME(ThreadExchangeStreamCaptureMode);
    return hipThreadExchangeStreamCaptureMode(&mode);
}

/* Errors of stream capture. HIP and CUDA use the same numbers. */
static bool of_capture(hipError_t result)
{
    return (int)result >= 900 && (int)result <= 908;
}

/* Waits until the device has finished all work that may read the memory, and unmaps it. The memory stays mapped if
 * the wait is refused. */
static hipError_t memory_unmap(struct opened *opened, const char **ret_call)
{
    hipError_t result = device_use(opened->device, ret_call);
    if (result != hipSuccess)
        return result;
    *ret_call = HIP_NAME(DeviceSynchronize);
    result = hipDeviceSynchronize();
    if (of_capture(result))
        return result;
    /* Any other error means that the work failed, and so has ended, or that the device runs nothing any more. */
    if (opened->by_descriptor)
        hip_share_drop(&opened->share);
    else
        (void)!hipIpcCloseMemHandle(opened->data);
    return hipSuccess;
}

/* The daemon made the memory as a whole number of granules. */
static hipError_t descriptor_map(struct opened *opened, const char **ret_call)
{
    uint64_t granule;
    hipError_t result = hip_share_granule(opened->device, &granule, ret_call);
    if (result != hipSuccess)
        return result;
    const uint64_t bytes = (opened->share.bytes + granule - 1) / granule * granule;
    const hipMemAccessFlags access = opened->writable ? hipMemAccessFlagsProtReadWrite : hipMemAccessFlagsProtRead;
    result = hip_share_import(opened->device, opened->fd, bytes, access, &opened->share, ret_call);
    if (result == hipSuccess)
        opened->data = opened->share.base;
    return result;
}

static hipError_t memory_map_here(struct opened *opened, const char **ret_call)
{
    struct hip_here_before before;
    *ret_call = "the driver";
    hipError_t result = hip_here_enter(opened->here, &before);
    if (result != hipSuccess)
        return result;
    result = opened->by_descriptor ? descriptor_map(opened, ret_call) : hip_here_open(&opened->data, opened->handle);
    (void)hip_here_leave(&before);
    return result;
}

static hipError_t memory_map(struct opened *opened, const char **ret_call)
{
    if (opened->here)
        return memory_map_here(opened, ret_call);
    hipError_t result = device_use(opened->device, ret_call);
    if (result != hipSuccess)
        return result;
    if (opened->by_descriptor)
        return descriptor_map(opened, ret_call);
    *ret_call = HIP_NAME(IpcOpenMemHandle);
    return hipIpcOpenMemHandle(&opened->data, opened->handle, hipIpcMemLazyEnablePeerAccess);
}

/* The functions from here on are called with `lock` held. They release it during calls of the runtime: some runtimes
 * take seconds to open the handle of a process that does not answer. */
static struct opened *handle_find(int device, const hipIpcMemHandle_t *handle)
{
    struct opened *opened = list;
    while (opened &&
           (opened->by_descriptor || opened->device != device || memcmp(&opened->handle, handle, sizeof(*handle)) != 0))
        opened = opened->next;
    return opened;
}

static struct opened *unused_find(int device)
{
    struct opened *opened = list;
    while (opened && (opened->device != device || opened->references > 0 || opened->busy))
        opened = opened->next;
    return opened;
}

static hipError_t opened_ask(struct opened *opened, bool unmap, const char **ret_call)
{
    opened->busy = true;
    pthread_mutex_unlock(&lock);
    hipError_t result = unmap ? memory_unmap(opened, ret_call) : memory_map(opened, ret_call);
    pthread_mutex_lock(&lock);
    opened->busy = false;
    pthread_cond_broadcast(&changed);
    return result;
}

static void opened_forget(struct opened *opened)
{
    for (struct opened **at = &list; *at; at = &(*at)->next)
        if (*at == opened) {
            *at = opened->next;
            break;
        }
    free(opened);
}

/* Closes all memory of the device that is no longer used. This includes memory that could not be unmapped before. */
static hipError_t unused_close(int device, const char **ret_call)
{
    for (struct opened *opened; (opened = unused_find(device));) {
        hipError_t result = opened_ask(opened, true, ret_call);
        if (result != hipSuccess)
            return result;
        opened_forget(opened);
    }
    return hipSuccess;
}

/* Opens what `what` describes. */
static int opened_new(const struct opened *what, struct opened **ret, struct import_fault *fault)
{
    struct opened *opened = malloc(sizeof(*opened));
    if (!opened)
        return import_fail(fault, -ENOMEM, "out of memory");
    *opened = *what;
    opened->next = list;
    opened->references = 1;
    list = opened;
    const char *call;
    hipError_t result = opened_ask(opened, false, &call);
    if (result != hipSuccess) {
        opened_forget(opened);
        return failed(fault, result == hipErrorOutOfMemory ? -ENOMEM : -EIO, call, result);
    }
    *ret = opened;
    return 0;
}

static int handle_open(int device, const hipIpcMemHandle_t *handle, struct opened **ret, struct import_fault *fault)
{
    struct opened *opened;
    while ((opened = handle_find(device, handle))) {
        if (opened->busy) {
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        if (opened->references > 0) {
            opened->references++;
            *ret = opened;
            return 0;
        }
        /* Its lease has ended, so the handle may mean other memory now. */
        const char *call;
        hipError_t result = unused_close(device, &call);
        if (result != hipSuccess)
            return failed(fault, of_capture(result) ? -EBUSY : -EIO, call, result);
    }
    return opened_new(&(struct opened){.device = device, .handle = *handle}, ret, fault);
}

/* Notes that memory of the device was opened, so that later opens use the caller's thread. If there is no memory to
 * note it, later opens use a new thread too. */
static void known_add(int device)
{
    struct import_fault unused;
    struct known *at = known;
    while (at && at->device != device)
        at = at->next;
    if (at || !HIP_HERE)
        return;
    at = malloc(sizeof(*at));
    if (!at)
        return;
    at->device = device;
    if (device_identify(device, at->uuid, at->pci, &unused) < 0 || hip_here_learn(device, &at->here) != hipSuccess) {
        free(at);
        return;
    }
    at->next = known;
    known = at;
}

static int descriptor_open(int device, int fd, uint64_t bytes, bool writable, struct opened **ret,
                           struct import_fault *fault)
{
    const struct opened what = {
        .device = device, .by_descriptor = true, .writable = writable, .fd = fd, .share = {.bytes = bytes}};
    return opened_new(&what, ret, fault);
}

static void opened_close(struct opened *opened)
{
    const char *unused;
    if (--opened->references == 0)
        (void)!unused_close(opened->device, &unused);
}

static int run_open(struct task *task)
{
    const struct import_source *source = task->source;
    hipIpcMemHandle_t handle;
    if (source->fd < 0)
        memcpy(&handle, source->handle, sizeof(handle));
    int device = -1;
    int r = device_find(source, &device, task->fault);
    if (r < 0)
        return r;
    pthread_mutex_lock(&lock);
    r = source->fd < 0 ? handle_open(device, &handle, &task->mapping->opened, task->fault)
                       : descriptor_open(device, source->fd, source->bytes, source->writable != 0,
                                         &task->mapping->opened, task->fault);
    if (r == 0)
        known_add(device);
    pthread_mutex_unlock(&lock);
    return r;
}

/* Tries to open the memory on the caller's thread. False: nothing was done; the caller tries again on a new thread,
 * which reports the error. */
static bool open_here(const struct import_source *source, struct mapping *mapping)
{
    struct import_fault unused;
    bool done = false;
    struct opened what = {.by_descriptor = source->fd >= 0, .fd = source->fd, .writable = source->writable != 0};
    if (what.by_descriptor)
        what.share.bytes = source->bytes;
    else
        memcpy(&what.handle, source->handle, sizeof(what.handle));
    pthread_mutex_lock(&lock);
    const struct known *at = known;
    while (at && !is_meant(source, at->uuid, at->pci))
        at = at->next;
    struct opened *same = at && !what.by_descriptor ? handle_find(at->device, &what.handle) : NULL;
    if (same && same->references > 0 && !same->busy) {
        same->references++;
        mapping->opened = same;
        done = true;
    } else if (at && !same) {
        what.device = at->device;
        what.here = &at->here;
        done = opened_new(&what, &mapping->opened, &unused) == 0;
    }
    pthread_mutex_unlock(&lock);
    return done;
}

static int import_open(const struct import_source *source, struct import_mapping **ret, struct import_fault *ret_fault)
{
    if (source->fd < 0 && (!source->handle || source->handle_size != sizeof(hipIpcMemHandle_t)))
        return import_fail(ret_fault, -EPROTO, "a handle of %zu bytes, not %zu",
                           source->handle ? source->handle_size : 0, sizeof(hipIpcMemHandle_t));
    if (source->bytes > BYTES_MAX)
        return import_fail(ret_fault, -EPROTO, "memory of %llu bytes", (unsigned long long)source->bytes);
    if (!runtime_is_ours())
        return import_fail(ret_fault, -ENOTSUP, "this process was forked from one that uses the GPU, and cannot");
    struct mapping *mapping = calloc(1, sizeof(*mapping));
    if (!mapping)
        return import_fail(ret_fault, -ENOMEM, "out of memory");
    int r = open_here(source, mapping)
                ? 0
                : task_do(&(struct task){.run = run_open, .source = source, .mapping = mapping, .fault = ret_fault});
    if (r < 0) {
        free(mapping);
        return r;
    }
    mapping->mapping.data = mapping->opened->data;
    *ret = &mapping->mapping;
    return 0;
}

static int run_close(struct task *task)
{
    struct mapping *mapping = task->mapping;
    const char *unused;
    if (mapping->stream && device_use(mapping->opened->device, &unused) == hipSuccess)
        (void)!hipStreamDestroy(mapping->stream);
    pthread_mutex_lock(&lock);
    opened_close(mapping->opened);
    pthread_mutex_unlock(&lock);
    return 0;
}

/* If no thread can be created, the memory stays mapped. */
static void import_close(struct import_mapping *base)
{
    struct mapping *mapping = (struct mapping *)base;
    struct import_fault fault;
    if (mapping && runtime_is_ours())
        (void)task_do(&(struct task){.run = run_close, .mapping = mapping, .fault = &fault});
    free(mapping);
}

/* Uses a stream of its own: the null stream would wait for the program's streams. */
static hipError_t memory_read(struct task *task, const char **ret_call)
{
    struct mapping *mapping = task->mapping;
    hipError_t result = device_use(mapping->opened->device, ret_call);
    if (result == hipSuccess && !mapping->stream) {
        hipStream_t stream;
        *ret_call = HIP_NAME(StreamCreateWithFlags);
        result = hipStreamCreateWithFlags(&stream, hipStreamNonBlocking);
        if (result == hipSuccess)
            mapping->stream = stream;
    }
    if (result != hipSuccess)
        return result;
    *ret_call = HIP_NAME(MemcpyAsync);
    result = hipMemcpyAsync(task->dst, (const uint8_t *)mapping->mapping.data + task->offset, task->size,
                            hipMemcpyDeviceToHost, mapping->stream);
    if (result != hipSuccess)
        return result;
    *ret_call = HIP_NAME(StreamSynchronize);
    return hipStreamSynchronize(mapping->stream);
}

static int run_read(struct task *task)
{
    const char *call;
    hipError_t result = memory_read(task, &call);
    return result == hipSuccess ? 0 : failed(task->fault, -EIO, call, result);
}

static int import_read(struct import_mapping *base, uint64_t offset, void *dst, size_t size,
                       struct import_fault *ret_fault)
{
    if (!runtime_is_ours())
        return import_fail(ret_fault, -ENOTSUP, "this process was forked from one that uses the GPU, and cannot");
    return task_do(&(struct task){.run = run_read,
                                  .mapping = (struct mapping *)base,
                                  .offset = offset,
                                  .dst = dst,
                                  .size = size,
                                  .fault = ret_fault});
}

__attribute__((visibility("default"))) extern const struct import_module rocmforge_import_module;

const struct import_module rocmforge_import_module = {
    .abi = IMPORT_ABI,
    .kind = HIP_KIND,
    .open = import_open,
    .close = import_close,
    .read = import_read,
};
