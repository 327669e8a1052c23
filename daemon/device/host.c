/* The host as a device: an arena is a memfd, which is filled, and sealed before any client gets it.
 *
 * With few workers, arenas are filled with pwrite(), of which the kernel runs only one at a time on a file. Through a
 * mapping, several threads can fill an arena at the same time, but the kernel has to clear each page first. With enough
 * cores this is quicker: a trial at the start tells. The mapping is removed before the arena is sealed. */
#include "daemon/base/memory_file.h"
#include "daemon/device/cgroup.h"
#include "daemon/device/device.h"
#include "daemon/device/host_trial.h"
#include "proto/min.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A slot is small enough to stay in a core's cache between reading and writing; larger ones were not faster. One worker
 * fills it and writes it to the arena. There are twice as many as workers, so that the next one is ready. */
#define HOST_SLOT_BYTES       ((size_t)1 << 20)
#define HOST_SLOTS_PER_WORKER 2u

/* The least number of slots for loads that read past the page cache: a disk is faster with many reads under way. */
#define HOST_SLOTS_DIRECT 16u

/* Bytes of one pwrite(). The kernel allocates a page for each 4 KiB of it, and many kernels do not preempt the thread
 * until the call is done. */
#define HOST_WRITE_BYTES ((size_t)64 << 10)

/* Slots are aligned to pages, which is fastest for pread(). */
#define HOST_SLOT_ALIGNMENT 4096u

/* Arenas are multiples of 2 MiB, so that clients can map them with huge pages if the kernel has them. */
#define HOST_GRANULE (2u << 20)

/* Smaller arenas are not worth a trial of which way to fill them is quicker, which takes as long as filling one. */
#define HOST_TRIAL_LEAST ((uint64_t)256 << 20)

struct host_device {
    struct device device;
    bool lock_memory;
    unsigned workers;
    pthread_mutex_t trying;
    enum host_fill fill; /* HOST_FILL_AUTO until it was tried, under `trying` */
};

/* Only one worker calls pwrite() for an arena at a time. The kernel allows only one writer in a file anyway, but the
 * others would spin in the kernel and keep the loop from running. On this mutex they sleep. */
struct arena {
    struct device *device;
    atomic_uint_least64_t written; /* bytes, of which the kernel then had to take as many */
    uint64_t bytes;                /* of the whole arena */
    bool lent;                     /* a client writes to it */
    uint8_t *mapping;              /* that it is filled through; NULL: with pwrite() */
    void *locked;                  /* a mapping that keeps the pages in memory; NULL: none */
    int fd;
    pthread_mutex_t writing;
};

/* A line of /proc/meminfo, in bytes; 0 if it has none. */
static uint64_t meminfo(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file)
        return 0;
    char line[128];
    size_t n = strlen(key);
    unsigned long long kib = 0;
    while (fgets(line, sizeof(line), file))
        if (strncmp(line, key, n) == 0 && line[n] == ':') {
            kib = strtoull(line + n + 1, NULL, 10);
            break;
        }
    fclose(file);
    return kib * 1024;
}

static void host_close(struct device *device)
{
    struct host_device *host = (struct host_device *)device;
    pthread_mutex_destroy(&host->trying);
    free(host);
}

static int host_slot_init(struct device *device, struct slot *slot, struct device_fault *ret_fault)
{
    (void)device;
    slot->data = aligned_alloc(HOST_SLOT_ALIGNMENT, slot->size);
    if (!slot->data)
        return device_fault_set(ret_fault, -ENOMEM, "aligned_alloc", ENOMEM, "no memory for a staging slot");
    return 0;
}

static void host_slot_fini(struct device *device, struct slot *slot)
{
    (void)device;
    free(slot->data);
}

/* Whether an arena of this size is filled through a mapping. The first large one tries it out: a start does not wait
 * for the trial. Blocks. */
static bool is_mapped(struct host_device *host, uint64_t bytes)
{
    pthread_mutex_lock(&host->trying);
    if (host->fill == HOST_FILL_AUTO && bytes >= HOST_TRIAL_LEAST)
        host->fill = host_map_is_quicker(host->workers) ? HOST_FILL_MAP : HOST_FILL_WRITE;
    const bool is = host->fill == HOST_FILL_MAP;
    pthread_mutex_unlock(&host->trying);
    return is;
}

/* Without a mapping, pwrite() does. */
static void arena_map(struct arena *arena)
{
    if (!is_mapped((struct host_device *)arena->device, arena->bytes))
        return;
    void *mapping = mmap(NULL, arena->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, 0);
    if (mapping == MAP_FAILED)
        return;
    (void)madvise(mapping, arena->bytes, MADV_HUGEPAGE);
    (void)madvise(mapping, arena->bytes, MADV_DONTDUMP);
    arena->mapping = mapping;
}

static void arena_unmap(struct arena *arena)
{
    if (arena->mapping)
        munmap(arena->mapping, arena->bytes);
    arena->mapping = NULL;
}

static int host_arena_new(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                          struct arena **ret, struct device_fault *ret_fault)
{
    (void)gaps; /* the kernel clears new pages */
    (void)n_gaps;
    struct arena *arena = calloc(1, sizeof(*arena));
    if (!arena)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    arena->device = device;
    arena->bytes = bytes;
    arena->fd = memory_file_new("rocmforge-model");
    if (arena->fd < 0) {
        const int error = -arena->fd;
        free(arena);
        return device_fault_set(ret_fault, -error, "memfd_create", error, strerror(error));
    }
    /* Pages are allocated by the first write to them; gaps read as zeros. */
    if (ftruncate(arena->fd, (off_t)bytes) < 0) {
        int error = errno;
        close(arena->fd);
        free(arena);
        return device_fault_set(ret_fault, -error, "ftruncate", error, strerror(error));
    }
    arena_map(arena);
    pthread_mutex_init(&arena->writing, NULL);
    *ret = arena;
    return 0;
}

/* Locks the pages of an arena that nobody can write to any more. Only pages of a mapping can be locked; it stays as
 * long as the arena. */
static int arena_lock(struct arena *arena, struct device_fault *ret_fault)
{
    if (!((const struct host_device *)arena->device)->lock_memory)
        return 0;
    void *mapping = mmap(NULL, arena->bytes, PROT_READ, MAP_SHARED, arena->fd, 0);
    if (mapping == MAP_FAILED)
        return device_fault_set(ret_fault, -errno, "mmap", errno, strerror(errno));
    if (mlock(mapping, arena->bytes) < 0) {
        const int error = errno;
        munmap(mapping, arena->bytes);
        return device_fault_set(ret_fault, -error, "mlock", error, strerror(error));
    }
    arena->locked = mapping;
    return 0;
}

static int adopt_check(int fd, uint64_t bytes, struct stat *ret, struct device_fault *ret_fault)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const int has = fcntl(fd, F_GET_SEALS);
    if (has < 0) /* no memory file, or no file at all */
        return device_fault_set(ret_fault, -errno, "fcntl(F_GET_SEALS)", errno, strerror(errno));
    if ((has & seals) != seals)
        return device_fault_set(ret_fault, -EPERM, "fcntl(F_GET_SEALS)", 0, "the memory is not sealed");
    if (fstat(fd, ret) < 0)
        return device_fault_set(ret_fault, -errno, "fstat", errno, strerror(errno));
    if ((uint64_t)ret->st_size != bytes)
        return device_fault_set(ret_fault, -EMSGSIZE, "fstat", 0, "the memory has another size");
    return 0;
}

static int host_arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                            struct device_export *ret_export, struct device_fault *ret_fault)
{
    struct stat status = {0};
    int r = adopt_check(fd, bytes, &status, ret_fault);
    if (r < 0)
        return r;
    struct arena *arena = calloc(1, sizeof(*arena));
    if (!arena)
        return device_fault_set(ret_fault, -ENOMEM, "calloc", ENOMEM, strerror(ENOMEM));
    arena->device = device;
    arena->bytes = bytes;
    arena->fd = fd;
    r = arena_lock(arena, ret_fault);
    if (r < 0) {
        free(arena);
        return r;
    }
    arena->written = (uint64_t)status.st_blocks * 512;
    atomic_fetch_add(&device->taken, arena->written);
    pthread_mutex_init(&arena->writing, NULL);
    *ret = arena;
    *ret_export = (struct device_export){.fd = fd};
    return 0;
}

static void host_arena_free(struct arena *arena)
{
    arena_unmap(arena);
    if (arena->locked)
        munmap(arena->locked, arena->bytes);
    close(arena->fd);
    atomic_fetch_sub(&arena->device->taken, arena->written);
    pthread_mutex_destroy(&arena->writing);
    free(arena);
}

static int write_all(int fd, const uint8_t *data, uint64_t size, uint64_t offset, struct device_fault *ret_fault)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, min_u64(size, HOST_WRITE_BYTES), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return device_fault_set(ret_fault, errno == ENOSPC ? -ENOMEM : -errno, "pwrite", errno, strerror(errno));
        data += n;
        offset += (uint64_t)n;
        size -= (uint64_t)n;
    }
    return 0;
}

static int fill_mapped(struct arena *arena, const uint8_t *data, const struct piece *piece,
                       struct device_fault *ret_fault)
{
    int r = host_map_fill(arena->mapping, piece->arena_offset, data, piece->slot_bytes);
    return r < 0 ? device_fault_set(ret_fault, r, "madvise", -r, strerror(-r)) : 0;
}

static void host_put(struct device *device, struct transfer *transfer)
{
    struct arena *arena = transfer->arena;
    transfer->begin_ns = device_clock_ns();
    transfer->status = 0;
    if (!arena->mapping)
        pthread_mutex_lock(&arena->writing);
    for (size_t i = 0; i < transfer->n_pieces && transfer->status == 0; i++) {
        const struct piece *piece = &transfer->pieces[i];
        const uint8_t *data = (const uint8_t *)transfer->slot->data + piece->slot_offset;
        transfer->status = arena->mapping
                               ? fill_mapped(arena, data, piece, &transfer->fault)
                               : write_all(arena->fd, data, piece->slot_bytes, piece->arena_offset, &transfer->fault);
        if (transfer->status == 0) {
            atomic_fetch_add(&arena->written, piece->slot_bytes);
            atomic_fetch_add(&device->taken, piece->slot_bytes);
        }
    }
    if (!arena->mapping)
        pthread_mutex_unlock(&arena->writing);
    transfer->copied_ns = transfer->end_ns = device_clock_ns();
    transfer->copy_ns = transfer->end_ns - transfer->begin_ns;
    transfer->done(transfer);
}

static int host_arena_export(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    (void)ret_fault;
    *ret = (struct device_export){.fd = arena->fd};
    return 0;
}

static int host_arena_lend(struct arena *arena, struct device_export *ret, struct device_fault *ret_fault)
{
    if (fcntl(arena->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        return device_fault_set(ret_fault, -errno, "fcntl(F_ADD_SEALS)", errno, strerror(errno));
    arena_unmap(arena); /* or the memory could not be sealed later */
    arena->lent = true;
    *ret = (struct device_export){.fd = arena->fd};
    return 0;
}

/* Counts what a client has written to the arena. */
static void count_written(struct arena *arena)
{
    struct stat status;
    if (fstat(arena->fd, &status) < 0)
        return;
    arena->written = (uint64_t)status.st_blocks * 512;
    atomic_fetch_add(&arena->device->taken, arena->written);
}

static int host_arena_seal(struct arena *arena, struct device_fault *ret_fault)
{
    struct stat unused;
    struct device_fault ignored;
    arena_unmap(arena);
    int r = memory_file_seal(arena->fd);
    /* A client that has the descriptor may have sealed it itself, also against further seals. */
    if (r == -EPERM && arena->lent && adopt_check(arena->fd, arena->bytes, &unused, &ignored) == 0)
        r = 0;
    if (r < 0)
        return device_fault_set(ret_fault, r, "fcntl(F_ADD_SEALS)", -r, strerror(-r));
    if (arena->lent)
        count_written(arena);
    return arena_lock(arena, ret_fault);
}

static int host_arena_read(struct arena *arena, uint64_t offset, void *dst, size_t size, struct device_fault *ret_fault)
{
    uint8_t *at = dst;
    while (size > 0) {
        ssize_t n = pread(arena->fd, at, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return device_fault_set(ret_fault, n < 0 ? -errno : -EIO, "pread", n < 0 ? errno : 0,
                                    n < 0 ? strerror(errno) : "the arena is shorter than it was made");
        at += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static int host_memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device;
    uint64_t available = meminfo("MemAvailable");
    if (available == 0)
        return device_fault_set(ret_fault, -EIO, "/proc/meminfo", 0, "it does not tell MemAvailable");
    const uint64_t of_groups = cgroup_memory_free("/proc/self/cgroup", "/sys/fs/cgroup");
    *ret = min_u64(available, of_groups);
    return 0;
}

static bool host_decodes(struct device *device, const struct tensor_type *type, enum form form)
{
    (void)device;
    (void)type;
    (void)form;
    return false; /* the worker that calls it does the copying */
}

static const struct device_ops host_ops = {
    .close = host_close,
    .slot_init = host_slot_init,
    .slot_fini = host_slot_fini,
    .arena_new = host_arena_new,
    .arena_adopt = host_arena_adopt,
    .arena_free = host_arena_free,
    .put = host_put,
    .arena_export = host_arena_export,
    .arena_lend = host_arena_lend,
    .arena_seal = host_arena_seal,
    .arena_read = host_arena_read,
    .memory_free = host_memory_free,
    .decodes = host_decodes,
};

static int host_open(const struct device_config *config, struct device ***ret, struct device_fault *ret_fault)
{
    struct host_device *host = calloc(1, sizeof(*host));
    struct device **devices = malloc(sizeof(struct device *));
    if (!host || !devices) {
        free(host);
        free(devices);
        return device_fault_set(ret_fault, -ENOMEM, "malloc", ENOMEM, strerror(ENOMEM));
    }
    const unsigned n = HOST_SLOTS_PER_WORKER * (config->workers ? config->workers : 1);
    host->lock_memory = config->lock_memory;
    host->workers = config->workers;
    host->fill = config->host_fill;
    pthread_mutex_init(&host->trying, NULL);
    host->device = (struct device){
        .ops = &host_ops,
        .id = DEVICE_HOST,
        .kind = DEVICE_HOST,
        .name = "host memory",
        .export_kind = EXPORT_MEMFD,
        .total = meminfo("MemTotal"),
        .granule = HOST_GRANULE,
        .n_slots = n > HOST_SLOTS_DIRECT ? n : HOST_SLOTS_DIRECT,
        .n_cached = n,
        .slot_bytes = HOST_SLOT_BYTES,
        .part_bytes = HOST_SLOT_BYTES,
    };
    devices[0] = &host->device;
    *ret = devices;
    return 1;
}

const struct device_module device_host_module = {
    .abi = DEVICE_ABI,
    .kind = DEVICE_HOST,
    .open = host_open,
};
