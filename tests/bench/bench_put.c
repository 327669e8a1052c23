/* The way from a file in the page cache to a GPU, through a device module alone: without the daemon, what its slots,
 * streams and workers can reach, beside the rate of plain pinned copies.
 *
 * usage: ROCMFORGE_TEST_MODULE=device-cuda.so bench_put FILE
 *
 * FILE is read as if it were one tensor; what it holds does not matter. Each line is one setting, the best of three
 * runs. Exits 77 without a device. */
#include "daemon/device.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RUNS 3

struct run {
    struct device *device;
    struct arena *arena;
    int fd; /* -1: slots are put as they are */
    uint64_t bytes;
    size_t chunk; /* a slot's, in whole blocks */
    const struct tensor_type *type;
    bool decode;

    pthread_mutex_t lock;
    pthread_cond_t changed;
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

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
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

static void *worker(void *argument)
{
    struct run *run = argument;
    for (;;) {
        pthread_mutex_lock(&run->lock);
        while (run->n_free == 0 && run->next < run->bytes)
            pthread_cond_wait(&run->changed, &run->lock);
        if (run->next >= run->bytes) {
            pthread_mutex_unlock(&run->lock);
            return NULL;
        }
        struct slot *slot = run->free[--run->n_free];
        const uint64_t offset = run->next;
        const uint64_t left = run->bytes - offset;
        const uint64_t bytes = left < run->chunk ? left : run->chunk;
        run->next += bytes;
        pthread_mutex_unlock(&run->lock);

        for (uint64_t done = 0; run->fd >= 0 && done < bytes;) {
            ssize_t n = pread(run->fd, (char *)slot->data + done, bytes - done, (off_t)(offset + done));
            if (n <= 0) {
                perror("pread");
                exit(1);
            }
            done += (uint64_t)n;
        }
        struct put *put = calloc(1, sizeof(*put));
        const uint64_t blocks = offset / run->type->block_bytes;
        const uint64_t ratio = run->decode ? (uint64_t)run->type->block_elements * 2 : run->type->block_bytes;
        put->run = run;
        put->piece = (struct piece){
            .slot_bytes = bytes,
            .arena_offset = blocks * ratio,
            .arena_bytes = bytes / run->type->block_bytes * ratio,
            .type = run->type,
            .form = run->decode ? FORM_F16 : FORM_NATIVE,
        };
        put->transfer = (struct transfer){
            .arena = run->arena,
            .slot = slot,
            .pieces = &put->piece,
            .n_pieces = 1,
            .decode = run->decode,
            .done = put_done,
        };
        run->device->ops->put(run->device, &put->transfer);
    }
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

static void measure(const struct device_module *module, const char *streams, size_t slot_bytes, unsigned workers,
                    unsigned slots_each, int fd, uint64_t bytes, const struct tensor_type *type, bool decode)
{
    const struct device_config config = {.workers = workers, .streams = streams};
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
    struct run run = {.device = device, .fd = fd, .type = type, .decode = decode};
    pthread_mutex_init(&run.lock, NULL);
    pthread_cond_init(&run.changed, NULL);
    run.n_slots = (size_t)workers * slots_each;
    struct slot *slots = calloc(run.n_slots, sizeof(struct slot));
    run.free = calloc(run.n_slots, sizeof(struct slot *));
    for (size_t i = 0; i < run.n_slots; i++) {
        slots[i] = (struct slot){.device = device, .size = slot_bytes};
        if (device->ops->slot_init(device, &slots[i], &fault) < 0)
            die("slot", &fault);
        run.free[run.n_free++] = &slots[i];
    }
    run.bytes = bytes / type->block_bytes * type->block_bytes;
    run.chunk = slot_bytes / type->block_bytes * type->block_bytes;
    const uint64_t blocks = run.bytes / type->block_bytes;
    if (device->ops->arena_new(device, decode ? blocks * type->block_elements * 2 : run.bytes, &run.arena, &fault) < 0)
        die("arena", &fault);
    double best = 0;
    for (int i = 0; i <= RUNS; i++) {
        run.copy_ns = run.kernel_ns = 0;
        const double rate = run_once(&run, workers);
        best = i > 0 && rate > best ? rate : best;
    }
    if (run.status < 0)
        die("put", &run.fault);
    printf("%-7s %-6s %7zu %8s %7u %6u %9.1f %8.2f %9.1f %9.1f\n", type->name, decode ? "f16" : "native",
           slot_bytes >> 10, streams, workers, slots_each, best / 1e9, best / (double)device->link,
           (double)run.copy_ns / 1e6, (double)run.kernel_ns / 1e6);
    fflush(stdout);
    device->ops->arena_free(run.arena);
    for (size_t i = 0; i < run.n_slots; i++)
        device->ops->slot_fini(device, &slots[i]);
    for (int i = 0; i < n; i++)
        devices[i]->ops->close(devices[i]);
    free(devices);
    free(slots);
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
    const struct tensor_type *q4_0 = tensor_type_find(2);
    const struct tensor_type *f16 = tensor_type_find(1);
    static const char *const streams[] = {"1", "2", "4", "8"};
    printf("%-7s %-6s %7s %8s %7s %6s %9s %8s %9s %9s\n", "type", "form", "slot", "streams", "workers", "slots", "GB/s",
           "of link", "copy ms", "kernel ms");
    /* The device alone: slots are put again as they are. */
    for (size_t slot = (size_t)2 << 20; slot <= (size_t)16 << 20; slot *= 2)
        for (size_t s = 0; s < 4; s++) {
            if (slot != (size_t)8 << 20 && s != 1)
                continue;
            measure(module, streams[s], slot, 2, 4, -1, bytes, f16, false);
            measure(module, streams[s], slot, 2, 4, -1, bytes, q4_0, true);
        }
    /* With the file. */
    static const unsigned workers[] = {1, 2, 4, 8, 12, 16};
    for (size_t w = 0; w < sizeof(workers) / sizeof(workers[0]); w++)
        measure(module, "2", (size_t)8 << 20, workers[w], 3, fd, bytes, f16, false);
    for (size_t slot = (size_t)4 << 20; slot <= (size_t)16 << 20; slot *= 2)
        for (unsigned each = 2; each <= 4; each++)
            measure(module, "2", slot, 12, each, fd, bytes, f16, false);
    for (size_t s = 0; s < 4; s++)
        measure(module, streams[s], (size_t)8 << 20, 12, 3, fd, bytes, q4_0, true);
    return 0;
}
