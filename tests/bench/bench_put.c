/* The way from a file in the page cache to a GPU, through a device module alone: without the daemon, what its slots,
 * streams and workers can reach, beside the rate of plain pinned copies.
 *
 * usage: ROCMFORGE_TEST_MODULE=device-cuda.so bench_put FILE
 *
 * FILE is read as if it were one tensor; what it holds does not matter. Each line is one setting, the best of three
 * runs. Exits 77 without a device. */
#include "daemon/device/device.h"
#include "tests/bench/seconds.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define RUNS 3

/* One slot's worth of the file, which several workers read. */
struct fill {
    struct slot *slot;
    uint64_t offset, bytes;
    uint64_t taken; /* by workers, and read */
    uint64_t read;
};

struct run {
    struct device *device;
    struct arena *arena;
    int fd; /* -1: slots are put as they are */
    uint64_t bytes;
    size_t chunk; /* a slot's, in whole blocks */
    size_t part;  /* what a worker reads of it at a time */
    const struct tensor_type *type;
    bool decode;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct fill *fills; /* one for each slot */
    struct fill *open;  /* NULL, or the one that workers take parts of */
    struct slot **free;
    size_t n_free, n_slots;
    uint64_t next; /* offset in the file */
    int status;
    struct device_fault fault;
    uint64_t copy_ns, kernel_ns;
};

struct put {
    struct transfer transfer;
    struct piece piece;
    struct run *run;
};

static void die(const char *what, const struct device_fault *fault)
{
    fprintf(stderr, "%s: %s: %s (%d)\n", what, fault->call, fault->text, fault->code);
    exit(1);
}

static void put_done(struct transfer *transfer)
{
    struct put *put = (struct put *)transfer;
    struct run *run = put->run;
    pthread_mutex_lock(&run->lock);
    if (transfer->status < 0) {
        run->status = transfer->status;
        run->fault = transfer->fault;
    }
    run->copy_ns += transfer->copy_ns;
    run->kernel_ns += transfer->kernel_ns;
    run->free[run->n_free++] = transfer->slot;
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
    free(put);
}

static void put(struct run *run, const struct fill *fill)
{
    struct put *put = calloc(1, sizeof(*put));
    const uint64_t blocks = fill->offset / run->type->block_bytes;
    const uint64_t ratio = run->decode ? (uint64_t)run->type->block_elements * 2 : run->type->block_bytes;
    put->run = run;
    put->piece = (struct piece){
        .slot_bytes = fill->bytes,
        .arena_offset = blocks * ratio,
        .arena_bytes = fill->bytes / run->type->block_bytes * ratio,
        .type = run->type,
        .form = run->decode ? FORM_F16 : FORM_NATIVE,
    };
    put->transfer = (struct transfer){
        .arena = run->arena,
        .slot = fill->slot,
        .pieces = &put->piece,
        .n_pieces = 1,
        .decode = run->decode,
        .done = put_done,
    };
    run->device->ops->put(run->device, &put->transfer);
}

/* The slot that has something left to read, or a new one; NULL at the end of the file. The lock is held. */
static struct fill *fill_open(struct run *run)
{
    while (!run->open && run->n_free == 0 && run->next < run->bytes)
        pthread_cond_wait(&run->changed, &run->lock);
    if (run->open || run->next >= run->bytes)
        return run->open;
    struct slot *slot = run->free[--run->n_free];
    const uint64_t left = run->bytes - run->next;
    run->open = &run->fills[slot->index];
    *run->open = (struct fill){.slot = slot, .offset = run->next, .bytes = left < run->chunk ? left : run->chunk};
    run->next += run->open->bytes;
    pthread_cond_broadcast(&run->changed);
    return run->open;
}

static void read_part(const struct run *run, const struct fill *fill, uint64_t at, uint64_t bytes)
{
    char *dst = (char *)fill->slot->data + at;
    for (uint64_t done = 0; run->fd >= 0 && done < bytes;) {
        ssize_t n = pread(run->fd, dst + done, bytes - done, (off_t)(fill->offset + at + done));
        if (n <= 0) {
            perror("pread");
            exit(1);
        }
        done += (uint64_t)n;
    }
}

static void *worker(void *argument)
{
    struct run *run = argument;
    struct fill *fill;
    pthread_mutex_lock(&run->lock);
    while ((fill = fill_open(run))) {
        const uint64_t at = fill->taken;
        const uint64_t bytes = fill->bytes - at < run->part ? fill->bytes - at : run->part;
        fill->taken += bytes;
        if (fill->taken == fill->bytes)
            run->open = NULL;
        pthread_mutex_unlock(&run->lock);
        read_part(run, fill, at, bytes);
        pthread_mutex_lock(&run->lock);
        fill->read += bytes;
        if (fill->read == fill->bytes) {
            pthread_mutex_unlock(&run->lock);
            put(run, fill);
            pthread_mutex_lock(&run->lock);
        }
    }
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

/* Returns bytes of the file a second. */
static double run_once(struct run *run, unsigned workers)
{
    pthread_t threads[64];
    run->next = 0;
    const double begin = seconds();
    for (unsigned i = 0; i < workers; i++)
        pthread_create(&threads[i], NULL, worker, run);
    for (unsigned i = 0; i < workers; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_lock(&run->lock);
    while (run->n_free < run->n_slots)
        pthread_cond_wait(&run->changed, &run->lock);
    pthread_mutex_unlock(&run->lock);
    return (double)run->bytes / (seconds() - begin);
}

/* One row of the table. */
struct setting {
    size_t slot_mib;
    size_t parts; /* of a slot */
    unsigned n_slots;
    unsigned streams;
    unsigned workers;
    bool decode; /* Q4_0 to f16; else as it is */
};

static void measure(const struct device_module *module, const struct setting *setting, int fd, uint64_t bytes)
{
    const struct tensor_type *type = tensor_type_find(setting->decode ? 2 : 1);
    const size_t slot_bytes = setting->slot_mib << 20;
    const struct device_config config = {.workers = setting->workers, .streams = setting->streams};
    struct device **devices;
    struct device_fault fault = {0};
    int n = module->open(&config, &devices, &fault);
    if (n == -ENODEV) {
        fprintf(stderr, "no device: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        exit(77);
    }
    if (n < 0)
        die("open", &fault);
    struct device *device = devices[0];
    struct run run = {.device = device, .fd = fd, .type = type, .decode = setting->decode};
    pthread_mutex_init(&run.lock, NULL);
    pthread_cond_init(&run.changed, NULL);
    run.n_slots = setting->n_slots;
    run.part = (slot_bytes / setting->parts + 4095) / 4096 * 4096;
    run.fills = calloc(run.n_slots, sizeof(struct fill));
    struct slot *slots = calloc(run.n_slots, sizeof(struct slot));
    run.free = calloc(run.n_slots, sizeof(struct slot *));
    for (size_t i = 0; i < run.n_slots; i++) {
        slots[i] = (struct slot){.device = device, .index = (unsigned)i, .size = slot_bytes};
        if (device->ops->slot_init(device, &slots[i], &fault) < 0)
            die("slot", &fault);
        run.free[run.n_free++] = &slots[i];
    }
    run.bytes = bytes / type->block_bytes * type->block_bytes;
    run.chunk = slot_bytes / type->block_bytes * type->block_bytes;
    const uint64_t blocks = run.bytes / type->block_bytes;
    const uint64_t arena_bytes = setting->decode ? blocks * type->block_elements * 2 : run.bytes;
    if (device->ops->arena_new(device, arena_bytes, NULL, 0, &run.arena, &fault) < 0)
        die("arena", &fault);
    /* The best that any setting's device said: the driver may be at what the one before it left, with the same engine.
     */
    static uint64_t link;
    link = device->link > link ? device->link : link;
    double best = 0;
    for (int i = 0; i <= RUNS; i++) {
        run.copy_ns = run.kernel_ns = 0;
        const double rate = run_once(&run, setting->workers);
        best = i > 0 && rate > best ? rate : best;
    }
    if (run.status < 0)
        die("put", &run.fault);
    printf("%-7s %-6s %8zu %5u %5zu %7u %7u %9.1f %8.2f %9.1f %9.1f\n", type->name, setting->decode ? "f16" : "native",
           setting->slot_mib, setting->n_slots, setting->parts, setting->workers, setting->streams, best / 1e9,
           best / (double)link, (double)run.copy_ns / 1e6, (double)run.kernel_ns / 1e6);
    fflush(stdout);
    device->ops->arena_free(run.arena);
    for (size_t i = 0; i < run.n_slots; i++)
        device->ops->slot_fini(device, &slots[i]);
    for (int i = 0; i < n; i++)
        devices[i]->ops->close(devices[i]);
    free(devices);
    free(slots);
    free(run.fills);
    free(run.free);
}

int main(int argc, char **argv)
{
    const char *path = getenv("ROCMFORGE_TEST_MODULE");
    void *object = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    const struct device_module *module = object ? dlsym(object, DEVICE_MODULE_SYMBOL) : NULL;
    struct stat status;
    int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
    if (!module || fd < 0 || fstat(fd, &status) < 0) {
        fprintf(stderr, "usage: ROCMFORGE_TEST_MODULE=MODULE bench_put FILE\n");
        return 2;
    }
    const uint64_t bytes = (uint64_t)status.st_size;
    printf("%-7s %-6s %8s %5s %5s %7s %7s %9s %8s %9s %9s\n", "type", "form", "slot MiB", "slots", "parts", "workers",
           "streams", "GB/s", "of link", "copy ms", "kernel ms");
    /* The device alone: slots are put again as they are. */
    static const struct setting alone[] = {
        {1, 1, 8, 2, 2, false},  {4, 1, 8, 2, 2, false},  {8, 1, 8, 2, 2, false},
        {16, 1, 8, 2, 2, false}, {24, 1, 8, 2, 2, false}, {24, 1, 8, 1, 2, false},
        {16, 1, 3, 1, 2, true},  {16, 1, 3, 2, 2, true},  {16, 1, 3, 4, 2, true},
    };
    for (size_t i = 0; i < sizeof(alone) / sizeof(alone[0]); i++)
        measure(module, &alone[i], -1, bytes);
    /* With the file: each worker fills slots of its own, or all fill each together. */
    static const struct setting with_file[] = {
        {8, 1, 16, 2, 12, false},  {8, 1, 36, 2, 12, false},  {8, 32, 6, 2, 12, false},  {12, 48, 3, 2, 12, false},
        {16, 64, 2, 2, 12, false}, {16, 64, 3, 2, 12, false}, {16, 64, 4, 2, 12, false}, {16, 64, 6, 2, 12, false},
        {16, 16, 3, 2, 12, false}, {16, 12, 3, 2, 12, false}, {16, 64, 3, 1, 12, false}, {16, 64, 3, 4, 12, false},
        {16, 64, 3, 2, 8, false},  {16, 64, 3, 2, 10, false}, {16, 64, 3, 2, 14, false}, {16, 64, 3, 2, 16, false},
        {24, 64, 3, 2, 12, false}, {32, 64, 3, 2, 12, false}, {16, 64, 3, 1, 12, true},  {16, 64, 3, 2, 12, true},
        {16, 64, 4, 2, 12, true},  {16, 64, 3, 4, 12, true},  {24, 64, 3, 2, 12, true},
    };
    for (size_t i = 0; i < sizeof(with_file) / sizeof(with_file[0]); i++)
        measure(module, &with_file[i], fd, bytes);
    return 0;
}
