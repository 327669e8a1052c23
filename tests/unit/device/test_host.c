/* daemon/device/host.c: memory files, filled by several workers and closed for writing. */
#include "daemon/device/device.h"
#include "daemon/device/host_trial.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define ARENA ((uint64_t)2 << 20)

static struct device *device;

static int open_filled(enum host_fill host_fill)
{
    const struct device_config config = {.workers = 2, .host_fill = host_fill};
    struct device **devices;
    struct device_fault fault;
    if (device_host_module.open(&config, &devices, &fault) != 1)
        return -1;
    device = devices[0];
    free(devices);
    return 0;
}

static int device_open(void **state)
{
    (void)state;
    return open_filled(HOST_FILL_WRITE);
}

static int device_open_mapped(void **state)
{
    (void)state;
    return open_filled(HOST_FILL_MAP);
}

static int device_close(void **state)
{
    (void)state;
    device->ops->close(device);
    return 0;
}

static struct arena *arena_make(void)
{
    struct arena *arena = NULL;
    struct device_fault fault;
    assert_int_equal(device->ops->arena_new(device, ARENA, NULL, 0, &arena, &fault), 0);
    return arena;
}

static struct slot slot_make(int byte)
{
    struct slot slot = {.device = device, .size = device->slot_bytes};
    struct device_fault fault;
    assert_int_equal(device->ops->slot_init(device, &slot, &fault), 0);
    memset(slot.data, byte, slot.size);
    return slot;
}

static void done(struct transfer *transfer)
{
    (void)transfer;
}

static struct transfer put(struct arena *arena, struct slot *slot, uint64_t slot_offset, uint64_t bytes, uint64_t to)
{
    const struct piece piece = {
        .slot_offset = slot_offset, .slot_bytes = bytes, .arena_offset = to, .arena_bytes = bytes};
    struct transfer transfer = {.arena = arena, .slot = slot, .pieces = &piece, .n_pieces = 1, .done = done};
    device->ops->put(device, &transfer);
    transfer.pieces = NULL;
    return transfer;
}

static void sealed(void **state)
{
    (void)state;
    struct arena *arena = arena_make();
    struct slot slot = slot_make('x');
    struct device_fault fault;
    struct device_export export;
    ((char *)slot.data)[99] = 'y';
    assert_int_equal(put(arena, &slot, 99, 200000, 1000).status, 0);
    assert_int_equal(device->ops->arena_export(arena, &export, &fault), 0);
    assert_int_equal(put(arena, &slot, 0, 10, 500000).status, 0); /* exported is not closed */
    assert_int_equal(device->ops->arena_seal(arena, &fault), 0);

    const struct transfer late = put(arena, &slot, 0, 10, 0);
    assert_int_equal(late.status, -EPERM);
    assert_string_equal(late.fault.call, "pwrite");

    assert_int_equal(export.handle_size, 0);
    const char *memory = mmap(NULL, ARENA, PROT_READ, MAP_PRIVATE, export.fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    assert_int_equal(memory[999], 0); /* what nothing was put to is clear */
    assert_int_equal(memory[1000], 'y');
    assert_int_equal(memory[1000 + 199999], 'x');
    assert_int_equal(memory[1000 + 200000], 0);
    assert_int_equal(memory[500009], 'x');
    assert_ptr_equal(mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, export.fd, 0), MAP_FAILED);
    assert_int_equal(ftruncate(export.fd, 0), -1);
    char read_back[3];
    assert_int_equal(device->ops->arena_read(arena, 999, read_back, 3, &fault), 0);
    assert_memory_equal(read_back, "\0yx", 3);
    /* Who has it open keeps it. */
    const int kept = dup(export.fd);
    device->ops->arena_free(arena);
    assert_int_equal(memory[1000], 'y');
    assert_int_equal(munmap((void *)(uintptr_t)memory, ARENA), 0);
    assert_int_equal(pread(kept, read_back, 1, 1000), 1);
    assert_int_equal(close(kept), 0);
    device->ops->slot_fini(device, &slot);
}

/* A client writes to it, and cannot change its size. It is sealed when nobody has it mapped for writing any more. */
static void lent(void **state)
{
    (void)state;
    struct arena *arena = arena_make();
    struct device_fault fault;
    struct device_export export;
    const uint64_t before = atomic_load(&device->taken);
    assert_int_equal(device->ops->arena_lend(arena, &export, &fault), 0);
    assert_int_equal(ftruncate(export.fd, ARENA + 1), -1);
    assert_int_equal(ftruncate(export.fd, 0), -1);
    char *memory = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, export.fd, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    memory[5000] = 'x';
    assert_int_equal(device->ops->arena_seal(arena, &fault), -EBUSY);
    assert_string_equal(fault.call, "fcntl(F_ADD_SEALS)");
    memory[5001] = 'y';
    assert_int_equal(munmap(memory, ARENA), 0);
    assert_int_equal(device->ops->arena_seal(arena, &fault), 0);
    assert_int_equal(pwrite(export.fd, "z", 1, 0), -1);
    char read_back[3];
    assert_int_equal(device->ops->arena_read(arena, 5000, read_back, 3, &fault), 0);
    assert_memory_equal(read_back, "xy", 3);
    assert_true(atomic_load(&device->taken) >= before + 4096); /* what the client wrote is the model's now */
    device->ops->arena_free(arena);
    assert_int_equal(atomic_load(&device->taken), before);
}

/* What a process left, another takes back. */
static void adopted(void **state)
{
    (void)state;
    struct arena *arena = arena_make(), *again = NULL;
    struct slot slot = slot_make('x');
    struct device_fault fault;
    struct device_export export;
    char read_back[3];
    const uint64_t before = atomic_load(&device->taken);
    assert_int_equal(put(arena, &slot, 0, 300000, 1000).status, 0);
    assert_int_equal(device->ops->arena_export(arena, &export, &fault), 0);
    const int kept = dup(export.fd);
    assert_int_equal(device->ops->arena_adopt(device, kept, ARENA, &again, &export, &fault), -EPERM);
    assert_int_equal(device->ops->arena_seal(arena, &fault), 0);
    device->ops->arena_free(arena);
    assert_int_equal(atomic_load(&device->taken), before);

    static const uint64_t sizes[] = {0, 1, ARENA - 1, ARENA + 1, 2 * ARENA, UINT64_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_int_equal(device->ops->arena_adopt(device, kept, sizes[i], &again, &export, &fault), -EMSGSIZE);
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(device->ops->arena_adopt(device, null, ARENA, &again, &export, &fault), -EINVAL);
    assert_int_equal(close(null), 0);
    assert_int_equal(device->ops->arena_adopt(device, -1, ARENA, &again, &export, &fault), -EBADF);
    assert_string_equal(fault.call, "fcntl(F_GET_SEALS)");
    assert_int_equal(atomic_load(&device->taken), before);

    assert_int_equal(device->ops->arena_adopt(device, kept, ARENA, &again, &export, &fault), 0);
    assert_int_equal(export.fd, kept);
    assert_true(atomic_load(&device->taken) >= before + 300000);
    assert_int_equal(device->ops->arena_read(again, 999, read_back, 3, &fault), 0);
    assert_memory_equal(read_back, "\0xx", 3);
    assert_int_equal(put(again, &slot, 0, 10, 0).status, -EPERM);
    device->ops->arena_free(again);
    assert_int_equal(fcntl(kept, F_GETFD), -1);
    assert_int_equal(atomic_load(&device->taken), before);
    device->ops->slot_fini(device, &slot);
}

#define WORKERS 4
#define SPAN    (ARENA / WORKERS)

struct worker {
    struct arena *arena;
    int number;
    int status;
};

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct slot slot = slot_make('a' + worker->number);
    /* Interleaved with the others', and longer than is written at once. */
    for (uint64_t at = 0; at < SPAN && worker->status == 0; at += 100000) {
        const uint64_t bytes = SPAN - at < 100000 ? SPAN - at : 100000;
        worker->status = put(worker->arena, &slot, 0, bytes, (uint64_t)worker->number * SPAN + at).status;
    }
    device->ops->slot_fini(device, &slot);
    return NULL;
}

static void several_workers(void **state)
{
    (void)state;
    struct arena *arena = arena_make();
    struct worker workers[WORKERS];
    pthread_t threads[WORKERS];
    struct device_fault fault;
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){.arena = arena, .number = i};
        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
    }
    char *got = malloc(SPAN);
    assert_non_null(got);
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].status, 0);
    }
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(device->ops->arena_read(arena, (uint64_t)i * SPAN, got, SPAN, &fault), 0);
        for (uint64_t at = 0; at < SPAN; at++)
            assert_int_equal(got[at], 'a' + i);
    }
    free(got);
    device->ops->arena_free(arena);
}

/* Both ways can be tried, and few workers do not try. Which is quicker is the machine's affair. */
static void trial(void **state)
{
    (void)state;
    assert_false(host_map_is_quicker(1));
    assert_false(host_map_is_quicker(3));
    print_message("with four workers a mapping is %s\n", host_map_is_quicker(4) ? "quicker" : "not quicker");
    for (unsigned i = 0; i < 2; i++) { /* nothing is left of it */
        const int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        static int first;
        first = i == 0 ? fd : first;
        assert_int_equal(fd, first);
        close(fd);
        (void)host_map_is_quicker(4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sealed),
        cmocka_unit_test(lent),
        cmocka_unit_test(adopted),
        cmocka_unit_test(several_workers),
    };
    const int failed = cmocka_run_group_tests_name("pwrite()", tests, device_open, device_close);
    const struct CMUnitTest tests_of_trial[] = {
        cmocka_unit_test(trial),
    };
    return failed + cmocka_run_group_tests_name("mapped", tests, device_open_mapped, device_close) +
           cmocka_run_group_tests(tests_of_trial, NULL, NULL);
}
