/* Allocations and handles. Device memory is a System V segment. Any process of any user can map it by its number. It
 * goes away when the last process unmaps it or ends. */
#include "tests/fake_hip/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#define HANDLE_MAGIC 0x656c646e6148u

/* What new memory is filled with, as if another program had used it. */
#define LEFT_OVER 0xa5

struct block {
    struct block *next;
    enum block_kind kind;
    int device;
    uint8_t *base;
    size_t bytes;
    int segment; /* the System V segment of device memory, made here or by the process that exported it; otherwise -1 */
};

struct handle {
    uint64_t magic;
    int32_t pid;
    int32_t segment;
    int32_t device;
    int32_t unused;
    uint64_t bytes;
};

static struct block *blocks;

static struct block *block_at(const void *pointer, size_t bytes)
{
    const uint8_t *p = pointer;
    for (struct block *block = blocks; block; block = block->next)
        if (p >= block->base && p < block->base + block->bytes && bytes <= (size_t)(block->base + block->bytes - p))
            return block;
    return NULL;
}

bool fake_find(const void *pointer, size_t bytes, enum block_kind *ret_kind, int *ret_device)
{
    pthread_mutex_lock(&fake_lock);
    const struct block *block = block_at(pointer, bytes);
    if (block) {
        *ret_kind = block->kind;
        *ret_device = block->device;
    }
    pthread_mutex_unlock(&fake_lock);
    return block != NULL;
}

bool fake_on_device(const void *pointer, size_t bytes, int device)
{
    enum block_kind kind;
    int where;
    return fake_find(pointer, bytes, &kind, &where) && kind != BLOCK_PINNED && where == device;
}

bool fake_writable(const void *pointer, size_t bytes, int device)
{
    enum block_kind kind;
    int where;
    return fake_find(pointer, bytes, &kind, &where) && kind != BLOCK_PINNED && kind != BLOCK_READ_ONLY &&
           where == device;
}

static void block_add(struct block *block)
{
    pthread_mutex_lock(&fake_lock);
    block->next = blocks;
    blocks = block;
    if (block->kind == BLOCK_DEVICE)
        fake_live.allocations++;
    else if (block->kind == BLOCK_PINNED)
        fake_live.pinned++;
    else if (block->kind == BLOCK_OPENED)
        fake_live.opened++;
    pthread_mutex_unlock(&fake_lock);
}

void fake_block_add(enum block_kind kind, int device, void *base, size_t bytes)
{
    struct block *block = calloc(1, sizeof(*block));
    *block = (struct block){.kind = kind, .device = device, .base = base, .bytes = bytes, .segment = -1};
    block_add(block);
}

/* Removes the block that begins here from the list. NULL if there is none of that kind. */
static struct block *block_remove(const void *base, enum block_kind kind)
{
    pthread_mutex_lock(&fake_lock);
    struct block **at = &blocks;
    while (*at && ((*at)->base != base || (*at)->kind != kind))
        at = &(*at)->next;
    struct block *block = *at;
    if (block) {
        *at = block->next;
        if (kind == BLOCK_DEVICE) {
            fake_live.allocations--;
            fake_used[block->device] -= fake_leak ? 0 : block->bytes;
        } else if (kind == BLOCK_PINNED) {
            fake_live.pinned--;
        } else if (kind == BLOCK_OPENED) {
            fake_live.opened--;
        }
    }
    pthread_mutex_unlock(&fake_lock);
    return block;
}

bool fake_block_remove(const void *base, enum block_kind kind)
{
    struct block *block = block_remove(base, kind);
    free(block);
    return block != NULL;
}

/* Takes all pages of fresh memory at once: cheaper than one by one, as memset() comes to them. Kernels before 5.14 do
 * not know how, and nothing is lost by that. */
static void populate(void *base, size_t bytes)
{
    (void)madvise(base, bytes, MADV_POPULATE_WRITE);
}

void fake_leave_over(void *base, size_t bytes)
{
    populate(base, bytes);
    memset(base, LEFT_OVER, bytes);
}

bool fake_reserve(int device, size_t bytes)
{
    pthread_mutex_lock(&fake_lock);
    bool fits = bytes <= fake_memory - fake_used[device];
    if (fits)
        fake_used[device] += bytes;
    pthread_mutex_unlock(&fake_lock);
    return fits;
}

FAKE_EXPORT hipError_t hipMalloc(void **pointer, size_t bytes)
{
    FAKE_ENTER(fake_current);
    fake_touch(fake_current);
    if (bytes == 0 || !fake_reserve(fake_current, bytes))
        return bytes == 0 ? hipErrorInvalidValue : hipErrorOutOfMemory;
    struct block *block = calloc(1, sizeof(*block));
    block->kind = BLOCK_DEVICE;
    block->device = fake_current;
    block->bytes = bytes;
    block->segment = shmget(IPC_PRIVATE, bytes, 0666);
    block->base = block->segment < 0 ? (void *)-1 : shmat(block->segment, NULL, 0);
    /* The segment is deleted when the last process unmaps it. Until then it can still be mapped, on Linux. */
    if (block->base == (void *)-1 || shmctl(block->segment, IPC_RMID, NULL) < 0)
        abort();
    fake_leave_over(block->base, bytes);
    block_add(block);
    *pointer = block->base;
    return hipSuccess;
}

/* Releases the memory even if it returns an error, so what is still counted was never released. */
FAKE_EXPORT hipError_t hipFree(void *pointer)
{
    hipError_t error = fake_enter(__func__, fake_current);
    fake_drain(fake_current);
    struct block *block = block_remove(pointer, BLOCK_DEVICE);
    if (!block)
        return error ? error : hipErrorInvalidValue;
    shmdt(block->base);
    free(block);
    return error;
}

FAKE_EXPORT hipError_t hipHostMalloc(void **pointer, size_t bytes, unsigned flags)
{
    FAKE_ENTER(fake_current);
    (void)flags;
    struct block *block = calloc(1, sizeof(*block));
    block->kind = BLOCK_PINNED;
    block->device = fake_current;
    block->bytes = bytes;
    block->segment = -1;
    block->base = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    fake_leave_over(block->base, bytes);
    block_add(block);
    *pointer = block->base;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipHostFree(void *pointer)
{
    hipError_t error = fake_enter(__func__, fake_current);
    struct block *block = block_remove(pointer, BLOCK_PINNED);
    if (!block)
        return error ? error : hipErrorInvalidValue;
    free(block->base);
    free(block);
    return error;
}

/* Memory of the program that is registered: it counts as pinned, and stays the program's. */
FAKE_EXPORT hipError_t hipHostRegister(void *memory, size_t bytes, unsigned flags)
{
    FAKE_ENTER(fake_current);
    enum block_kind kind;
    int where;
    if (!memory || bytes == 0 || (uintptr_t)memory % 4096 != 0 || flags != hipHostRegisterPortable ||
        fake_find(memory, 1, &kind, &where))
        return hipErrorInvalidValue;
    fake_block_add(BLOCK_PINNED, fake_current, memory, bytes);
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipHostUnregister(void *memory)
{
    hipError_t error = fake_enter(__func__, fake_current);
    if (!fake_block_remove(memory, BLOCK_PINNED))
        return error ? error : hipErrorInvalidValue;
    return error;
}

FAKE_EXPORT hipError_t hipHostGetDevicePointer(void **device, void *host, unsigned flags)
{
    FAKE_ENTER(fake_current);
    (void)flags;
    enum block_kind kind;
    int where;
    if (!fake_find(host, 1, &kind, &where) || kind != BLOCK_PINNED)
        return hipErrorInvalidValue;
    *device = host;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipMemGetInfo(size_t *available, size_t *total)
{
    FAKE_ENTER(fake_current);
    fake_delay_info();
    pthread_mutex_lock(&fake_lock);
    *available = fake_memory - fake_used[fake_current];
    *total = fake_memory;
    pthread_mutex_unlock(&fake_lock);
    return hipSuccess;
}

/* Uses the null stream, which does not wait for other streams here. */
FAKE_EXPORT hipError_t hipMemcpy(void *dst, const void *src, size_t bytes, hipMemcpyKind kind)
{
    FAKE_ENTER_UNSAFE(fake_current, true);
    fake_touch(fake_current);
    if ((kind == hipMemcpyHostToDevice && !fake_on_device(dst, bytes, fake_current)) ||
        (kind == hipMemcpyDeviceToHost && !fake_on_device(src, bytes, fake_current)))
        return hipErrorInvalidValue;
    if (kind == hipMemcpyHostToDevice && !fake_writable(dst, bytes, fake_current)) {
        fake_lose(fake_current, hipErrorIllegalAddress);
        return hipErrorIllegalAddress;
    }
    fake_gate();
    memcpy(dst, src, bytes);
    return hipSuccess;
}

/* A pointer to any place in an allocation gives the handle of the whole allocation. */
FAKE_EXPORT hipError_t hipIpcGetMemHandle(hipIpcMemHandle_t *handle, void *pointer)
{
    FAKE_ENTER(fake_current);
    pthread_mutex_lock(&fake_lock);
    const struct block *block = block_at(pointer, 1);
    hipError_t error = block && block->kind == BLOCK_DEVICE ? hipSuccess : hipErrorInvalidValue;
    if (error == hipSuccess) {
        const struct handle h = {
            .magic = HANDLE_MAGIC,
            .pid = getpid(),
            .segment = block->segment,
            .device = block->device,
            .bytes = block->bytes,
        };
        memset(handle, 0, sizeof(*handle));
        memcpy(handle, &h, sizeof(h));
    }
    pthread_mutex_unlock(&fake_lock);
    return error;
}

static hipError_t map(const struct handle *h, struct block *block)
{
    struct shmid_ds status;
    if (shmctl(h->segment, IPC_STAT, &status) < 0 || status.shm_segsz != h->bytes || status.shm_cpid != h->pid)
        return hipErrorInvalidHandle;
    if (fake_own_only && status.shm_perm.cuid != geteuid())
        return hipErrorInvalidHandle;
    block->base = shmat(h->segment, NULL, 0);
    return block->base == (void *)-1 ? hipErrorInvalidHandle : hipSuccess;
}

static hipError_t ipc_open(void **pointer, const struct handle *h)
{
    if (h->magic != HANDLE_MAGIC)
        return hipErrorInvalidHandle;
    if (h->pid == getpid())
        return hipErrorInvalidContext;
    if (h->device != fake_current)
        return hipErrorInvalidDevice;
    pthread_mutex_lock(&fake_lock);
    for (struct block *block = blocks; block; block = block->next)
        if (block->kind == BLOCK_OPENED && block->segment == h->segment) {
            *pointer = block->base;
            pthread_mutex_unlock(&fake_lock);
            return hipSuccess;
        }
    pthread_mutex_unlock(&fake_lock);
    struct block *block = calloc(1, sizeof(*block));
    block->kind = BLOCK_OPENED;
    block->device = fake_current;
    block->bytes = h->bytes;
    block->segment = h->segment;
    hipError_t error = map(h, block);
    if (error != hipSuccess) {
        free(block);
        return error;
    }
    block_add(block);
    *pointer = block->base;
    return hipSuccess;
}

FAKE_EXPORT hipError_t hipIpcOpenMemHandle(void **pointer, hipIpcMemHandle_t handle, unsigned flags)
{
    FAKE_ENTER_UNSAFE(fake_current, false);
    fake_touch(fake_current);
    (void)flags;
    struct handle h;
    memcpy(&h, &handle, sizeof(h));
    hipError_t error = ipc_open(pointer, &h);
    if (error != hipSuccess)
        fake_last = error;
    return error;
}

FAKE_EXPORT hipError_t hipIpcCloseMemHandle(void *pointer)
{
    const bool waited = fake_waited_for == fake_current;
    hipError_t error = fake_enter(__func__, fake_current);
    if (fake_capture(fake_current, false) != hipSuccess)
        return hipErrorStreamCaptureUnsupported;
    if (!waited)
        return hipErrorIllegalState;
    struct block *block = block_remove(pointer, BLOCK_OPENED);
    if (!block)
        return error ? error : hipErrorInvalidValue;
    shmdt(block->base);
    free(block);
    return error;
}
