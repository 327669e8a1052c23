#include "daemon/memory/host_pool.h"

#include "daemon/base/log.h"
#include "proto/bytes.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Runs begin at multiples of this: huge pages. */
#define GRANULE ((uint64_t)2 << 20)

/* A run that is taken. */
struct run {
    TAILQ_ENTRY(run) link;
    uint64_t offset, bytes; /* multiples of GRANULE */
};

struct host_pool {
    struct core *core;
    struct device *device; /* that the memory is registered with */
    const struct device *host;
    enum host_pool_state state;
    uint8_t *memory;
    uint64_t bytes;
    TAILQ_HEAD(, run) runs; /* by offset */
    int status;             /* of the making */
    struct device_fault fault;
    uint64_t began;
    struct work work;
};

/* So many more bytes have to be free when the memory is taken: if the kernel has none left, it kills processes. */
#define MARGIN ((uint64_t)256 << 20)

static int take_pages(struct host_pool *pool)
{
    uint64_t available;
    if (device_memory_free((struct device *)pool->host, &available, &pool->fault) == 0 &&
        available < pool->bytes + MARGIN)
        return device_fault_set(&pool->fault, -ENOMEM, "mmap", ENOMEM, "the host has not so much free");
    void *memory = mmap(NULL, pool->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return device_fault_set(&pool->fault, -errno, "mmap", errno, strerror(errno));
    (void)madvise(memory, pool->bytes, MADV_HUGEPAGE);
    (void)madvise(memory, pool->bytes, MADV_DONTFORK);
    pool->memory = memory;
    return 0;
}

static void make_work(struct work *work)
{
    struct host_pool *pool = work->data;
    worker_step_back();
    pool->status = take_pages(pool);
    /* It takes longer the more memory there is, so the device does not count as lost if this takes long. */
    worker_device_begin();
    if (pool->status == 0)
        pool->status = pool->device->ops->host_register(pool->device, pool->memory, pool->bytes, &pool->fault);
    worker_device_end();
    if (pool->status < 0 && pool->memory) {
        munmap(pool->memory, pool->bytes);
        pool->memory = NULL;
    }
}

static void make_worked(struct work *work)
{
    struct host_pool *pool = work->data;
    char size[BYTES_TEXT_SIZE];
    bytes_text(size, (double)pool->bytes, "");
    pool->state = pool->status == 0 ? HOST_POOL_READY : HOST_POOL_NONE;
    if (pool->status == 0)
        log_notice("host cache: %s are pinned for %s, after %.1f s", size, pool->device->kind,
                   (double)(uv_hrtime() - pool->began) / 1e9);
    else
        log_warning("host cache: %s cannot be pinned: %s: %s; copies are ordinary memory", size, pool->fault.call,
                    pool->fault.text);
    core_job_end(pool->core);
}

static struct device *registrar(const struct devices *devices)
{
    for (size_t i = 0; i < devices->n; i++)
        if (devices->devices[i]->ops->host_register && !devices->devices[i]->failed)
            return devices->devices[i];
    return NULL;
}

struct host_pool *host_pool_new(struct core *core, struct devices *devices, uint64_t bytes)
{
    struct device *device = registrar(devices);
    struct host_pool *pool = device ? calloc(1, sizeof(*pool)) : NULL;
    if (!pool) {
        log_warning("host cache: it is not pinned: %s", device ? "no memory" : "there is no GPU");
        return NULL;
    }
    pool->core = core;
    pool->device = device;
    pool->host = devices_host(devices);
    pool->bytes = bytes / GRANULE * GRANULE;
    pool->began = uv_hrtime();
    pool->state = HOST_POOL_MAKING;
    TAILQ_INIT(&pool->runs);
    core_job_begin(core);
    worker_queue(core->queue, &pool->work, pool, make_work, make_worked);
    return pool;
}

void host_pool_free(struct host_pool *pool)
{
    if (!pool)
        return;
    assert(TAILQ_EMPTY(&pool->runs));
    if (pool->memory && !atomic_load(&pool->device->hung)) { /* else its driver would be called */
        pool->device->ops->host_unregister(pool->device, pool->memory);
        munmap(pool->memory, pool->bytes);
    }
    free(pool);
}

enum host_pool_state host_pool_state(const struct host_pool *pool)
{
    return pool ? pool->state : HOST_POOL_NONE;
}

bool host_pool_serves(const struct host_pool *pool, const struct device *device)
{
    return host_pool_state(pool) == HOST_POOL_READY && !pool->device->failed &&
           strcmp(pool->device->kind, device->kind) == 0;
}

void *host_pool_take(struct host_pool *pool, uint64_t bytes)
{
    if (bytes > pool->bytes)
        return NULL;
    const uint64_t wanted = (bytes + GRANULE - 1) / GRANULE * GRANULE;
    struct run *next;
    uint64_t offset = 0;
    TAILQ_FOREACH(next, &pool->runs, link)
    {
        if (next->offset - offset >= wanted)
            break;
        offset = next->offset + next->bytes;
    }
    if (!next && pool->bytes - offset < wanted)
        return NULL;
    struct run *run = malloc(sizeof(*run));
    if (!run)
        return NULL;
    *run = (struct run){.offset = offset, .bytes = wanted};
    if (next)
        TAILQ_INSERT_BEFORE(next, run, link);
    else
        TAILQ_INSERT_TAIL(&pool->runs, run, link);
    return pool->memory + offset;
}

bool host_pool_has(const struct host_pool *pool, const void *memory)
{
    const uint8_t *at = memory;
    return pool && pool->memory && at >= pool->memory && at < pool->memory + pool->bytes;
}

void host_pool_give(struct host_pool *pool, void *memory)
{
    struct run *run;
    TAILQ_FOREACH(run, &pool->runs, link)
    {
        if (pool->memory + run->offset == memory)
            break;
    }
    assert(run);
    TAILQ_REMOVE(&pool->runs, run, link);
    free(run);
}
