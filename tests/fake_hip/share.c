/* Memory that is shared by descriptors. An allocation is a memfd whose size cannot be changed; a page behind the memory
 * says what it is. Whoever gets the descriptor can map it, in any namespace. Access is the processor's: to write to a
 * mapping that may only be read is a fault. */
#include "tests/fake_hip/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARE_MAGIC 0x6572616853656b61u
#define GRANULARITY ((size_t)2 << 20)

/* From this version on the runtime takes the descriptor itself, before that its address. */
#define VERSION_DESCRIPTOR 70100000

struct tail {
    uint64_t magic;
    uint64_t bytes;
    int32_t device;
    int32_t pid; /* of the process that made it */
};

struct ihipMemGenericAllocationHandle {
    struct tail tail;
    int fd;
    unsigned references; /* the handle, and its mapping */
    bool released;
    bool imported;
};

/* Addresses that were reserved. */
struct range {
    struct range *next;
    uint8_t *base;
    size_t bytes;
    struct ihipMemGenericAllocationHandle *mapped; /* NULL: nothing */
};

static struct range *ranges; /* guarded by fake_lock, like all handles */

static bool is_foreign(const struct ihipMemGenericAllocationHandle *handle)
{
    return handle->imported && handle->tail.pid != getpid();
}

/* With fake_lock held. */
static void unref(struct ihipMemGenericAllocationHandle *handle)
{
    if (--handle->references > 0)
        return;
    close(handle->fd);
    if (handle->imported) {
        fake_live.opened--;
    } else {
        fake_live.allocations--;
        fake_used[handle->tail.device] -= fake_leak ? 0 : handle->tail.bytes;
    }
    free(handle);
}

static struct ihipMemGenericAllocationHandle *handle_new(int fd, const struct tail *tail, bool imported)
{
    struct ihipMemGenericAllocationHandle *handle = calloc(1, sizeof(*handle));
    if (!handle)
        abort();
    *handle = (struct ihipMemGenericAllocationHandle){.tail = *tail, .fd = fd, .references = 1, .imported = imported};
    pthread_mutex_lock(&fake_lock);
    if (imported)
        fake_live.opened++;
    else
        fake_live.allocations++;
    pthread_mutex_unlock(&fake_lock);
    return handle;
}

static bool wants_device(const hipMemLocation *location)
{
    return location->type == hipMemLocationTypeDevice && location->id == fake_current;
}

FAKE_EXPORT hipError_t hipMemGetAllocationGranularity(size_t *granularity, const hipMemAllocationProp *properties,
                                                      hipMemAllocationGranularity_flags which)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    (void)which;
    if (fake_no_share)
        return hipErrorNotSupported;
    if (!wants_device(&properties->location))
        return hipErrorInvalidValue;
    *granularity = fake_granularity ? fake_granularity : GRANULARITY;
    return hipSuccess;
}

static int memory_make(const struct tail *tail)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = memfd_create("fake_hip", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)(tail->bytes + page)) < 0)
        abort();
    void *memory = mmap(NULL, tail->bytes + page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        abort();
    fake_leave_over(memory, tail->bytes);
    memcpy((uint8_t *)memory + tail->bytes, tail, sizeof(*tail));
    munmap(memory, tail->bytes + page);
    return fd;
}

FAKE_EXPORT hipError_t hipMemCreate(hipMemGenericAllocationHandle_t *ret, size_t bytes,
                                    const hipMemAllocationProp *properties, unsigned long long flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    fake_touch(fake_current);
    if (fake_no_share)
        return hipErrorNotSupported;
    if (bytes == 0 || bytes % (fake_granularity ? fake_granularity : GRANULARITY) != 0 || flags != 0 ||
        properties->type != hipMemAllocationTypePinned || !wants_device(&properties->location) ||
        properties->requestedHandleType != hipMemHandleTypePosixFileDescriptor)
        return hipErrorInvalidValue;
    if (!fake_reserve(fake_current, bytes))
        return hipErrorOutOfMemory;
    const struct tail tail = {.magic = SHARE_MAGIC, .bytes = bytes, .device = fake_current, .pid = getpid()};
    *ret = handle_new(memory_make(&tail), &tail, false);
    return hipSuccess;
}

/* Calls that release something release it all the same if they return an error. */
FAKE_EXPORT hipError_t hipMemRelease(hipMemGenericAllocationHandle_t handle)
{
    hipError_t error = fake_enter(__func__, fake_current);
    pthread_mutex_lock(&fake_lock);
    if (handle->released)
        abort();
    handle->released = true;
    unref(handle);
    pthread_mutex_unlock(&fake_lock);
    return error;
}

FAKE_EXPORT hipError_t hipMemExportToShareableHandle(void *ret, hipMemGenericAllocationHandle_t handle,
                                                     hipMemAllocationHandleType type, unsigned long long flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    if (type != hipMemHandleTypePosixFileDescriptor || flags != 0)
        return hipErrorInvalidValue;
    int fd = dup(handle->fd); /* not closed on exec */
    if (fd < 0)
        return hipErrorOperatingSystem;
    *(int *)ret = fd;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipRuntimeGetVersion(int *version)
{
    FAKE_ENTER(-1);
    *version = fake_version;
    return hipSuccess;
}

static hipError_t tail_read(int fd, struct tail *ret)
{
    const off_t page = (off_t)sysconf(_SC_PAGESIZE);
    struct stat status;
    const int fixed = F_SEAL_SHRINK | F_SEAL_GROW;
    if (fstat(fd, &status) < 0 || (fcntl(fd, F_GET_SEALS) & fixed) != fixed || status.st_size < page ||
        pread(fd, ret, sizeof(*ret), status.st_size - page) != sizeof(*ret) || ret->magic != SHARE_MAGIC ||
        ret->bytes != (uint64_t)(status.st_size - page))
        return hipErrorInvalidValue;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipMemImportFromShareableHandle(hipMemGenericAllocationHandle_t *ret, void *from,
                                                       hipMemAllocationHandleType type)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    fake_touch(fake_current);
    if (fake_no_share)
        return hipErrorNotSupported;
    struct tail tail;
    int given = fake_version < VERSION_DESCRIPTOR ? *(int *)from : (int)(intptr_t)from;
    hipError_t error = type == hipMemHandleTypePosixFileDescriptor ? tail_read(given, &tail) : hipErrorInvalidValue;
    if (error == hipSuccess && tail.device != fake_current)
        error = hipErrorInvalidDevice;
    int fd = error == hipSuccess ? fcntl(given, F_DUPFD_CLOEXEC, 0) : -1;
    if (error == hipSuccess && fd < 0)
        error = hipErrorOperatingSystem;
    if (error == hipSuccess)
        *ret = handle_new(fd, &tail, true);
    else
        fake_last = error;
    return error;
}

/* With fake_lock held. */
static struct range **range_at(const void *base)
{
    struct range **at = &ranges;
    while (*at && (*at)->base != base)
        at = &(*at)->next;
    return at;
}

FAKE_EXPORT hipError_t hipMemAddressReserve(void **ret, size_t bytes, size_t alignment, void *where,
                                            unsigned long long flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    if (bytes == 0 || bytes % (fake_granularity ? fake_granularity : GRANULARITY) != 0 || alignment != 0 || where ||
        flags != 0)
        return hipErrorInvalidValue;
    /* Not where it may be by chance: aligned, with addresses on both sides that nothing is at. */
    uint8_t *base = mmap(NULL, bytes + 2 * GRANULARITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return hipErrorOutOfMemory;
    uint8_t *aligned = (uint8_t *)(((uintptr_t)base + GRANULARITY) / GRANULARITY * GRANULARITY);
    munmap(base, (size_t)(aligned - base));
    munmap(aligned + bytes, (size_t)(base + bytes + 2 * GRANULARITY - aligned - bytes));
    struct range *range = calloc(1, sizeof(*range));
    *range = (struct range){.base = aligned, .bytes = bytes};
    pthread_mutex_lock(&fake_lock);
    range->next = ranges;
    ranges = range;
    fake_live.addresses++;
    pthread_mutex_unlock(&fake_lock);
    *ret = aligned;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipMemAddressFree(void *pointer, size_t bytes)
{
    hipError_t error = fake_enter(__func__, fake_current);
    pthread_mutex_lock(&fake_lock);
    struct range **at = range_at(pointer), *range = *at;
    if (!range || range->bytes != bytes || range->mapped)
        abort();
    *at = range->next;
    fake_live.addresses--;
    pthread_mutex_unlock(&fake_lock);
    munmap(range->base, range->bytes);
    free(range);
    return error;
}

FAKE_EXPORT hipError_t hipMemMap(void *pointer, size_t bytes, size_t offset, hipMemGenericAllocationHandle_t handle,
                                 unsigned long long flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    hipError_t error = hipErrorInvalidValue;
    pthread_mutex_lock(&fake_lock);
    struct range *range = *range_at(pointer);
    /* Nothing but all of an allocation. */
    if (range && !range->mapped && range->bytes == bytes && handle->tail.bytes == bytes && offset == 0 && flags == 0) {
        range->mapped = handle;
        handle->references++;
        error = hipSuccess;
    }
    pthread_mutex_unlock(&fake_lock);
    return error;
}

static hipError_t make_accessible(struct range *range, bool writable)
{
    const int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (mmap(range->base, range->bytes, prot, MAP_SHARED | MAP_FIXED, range->mapped->fd, 0) == MAP_FAILED)
        abort();
    fake_block_add(writable ? BLOCK_SHARED : BLOCK_READ_ONLY, range->mapped->tail.device, range->base, range->bytes);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipMemSetAccess(void *pointer, size_t bytes, const hipMemAccessDesc *access, size_t n)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    const bool writable = access->flags == hipMemAccessFlagsProtReadWrite;
    if (!writable && fake_no_read_only)
        return hipErrorNotSupported;
    pthread_mutex_lock(&fake_lock);
    struct range *range = *range_at(pointer);
    pthread_mutex_unlock(&fake_lock);
    if (n != 1 || (!writable && access->flags != hipMemAccessFlagsProtRead) || !wants_device(&access->location) ||
        !range || range->bytes != bytes || !range->mapped || range->mapped->tail.device != access->location.id)
        return hipErrorInvalidValue;
    return make_accessible(range, writable);
}

/* Waits for what the device still does, as hipFree() does: on a lost device nobody else could. */
FAKE_EXPORT hipError_t hipMemUnmap(void *pointer, size_t bytes)
{
    const bool waited = fake_waited_for == fake_current;
    hipError_t error = fake_enter(__func__, fake_current);
    if (fake_capture(fake_current, false) != hipSuccess)
        return hipErrorStreamCaptureUnsupported;
    fake_drain(fake_current);
    pthread_mutex_lock(&fake_lock);
    struct range *range = *range_at(pointer);
    struct ihipMemGenericAllocationHandle *handle = range ? range->mapped : NULL;
    pthread_mutex_unlock(&fake_lock);
    if (!handle || range->bytes != bytes)
        abort();
    const bool accessible = fake_block_remove(pointer, BLOCK_SHARED) || fake_block_remove(pointer, BLOCK_READ_ONLY);
    if (accessible && is_foreign(handle) && !waited)
        abort();
    if (mmap(pointer, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
    pthread_mutex_lock(&fake_lock);
    range->mapped = NULL;
    unref(handle);
    pthread_mutex_unlock(&fake_lock);
    return error;
}
