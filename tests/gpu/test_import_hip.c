/* The import module: opens, reads and closes handles of the daemon, on a GPU or on tests/fake_hip. Exits 77 if there is
 * no device.
 *
 * test_import_hip [TEST]: all tests, or those whose names match. */
#include "tests/gpu/import_rig.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void test_same_bytes(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    const struct import_source source = source_of(&notice);
    struct import_mapping *first = open_fine(&source);
    struct import_mapping *second = open_fine(&source);
    assert_int_equal(compare(first), 0);
    /* Each mapping works until it is closed, in either order. */
    module->close(first);
    assert_int_equal(compare(second), 0);
    first = open_fine(&source);
    module->close(second);
    assert_int_equal(compare(first), 0);
    module->close(first);
    assert_nothing_open();
    server_do(&server, 'f', &notice);
    /* This process opened its first handle in the meantime, for which the runtime takes memory of the device. */
    assert_true(notice.free_after + (1ull << 30) >= notice.free_before);
    assert_int_equal(process_end(&server, 0), 0);
}

static void test_second_device(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    process_end(&server, 0);
    if (notice.devices < 2) {
        print_message("one device\n");
        skip();
    }
    server_start(&server, "1", &notice);
    struct import_source source = source_of(&notice);
    struct import_mapping *mapping = open_fine(&source);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    /* One of UUID and PCI address is enough. */
    source.uuid = NULL;
    module->close(open_fine(&source));
    source = source_of(&notice);
    source.pci = NULL;
    module->close(open_fine(&source));
    process_end(&server, 0);
}

static void test_refused(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    struct import_mapping *mapping = NULL;
    struct import_fault fault = {""};
    server_start(&server, "0", &notice);
    struct import_source source = source_of(&notice);
    source.fd = -1;
    source.handle_size = 63;
    assert_int_equal(module->open(&source, &mapping, &fault), -EPROTO);
    source = source_of(&notice);
    source.fd = -1;
    source.handle = NULL;
    assert_int_equal(module->open(&source, &mapping, &fault), -EPROTO);
    source = source_of(&notice);
    source.uuid = "00000000-0000-0000-0000-000000000000";
    assert_int_equal(module->open(&source, &mapping, &fault), -ENODEV);
    assert_non_null(strstr(fault.text, notice.id));
    source = source_of(&notice);
    source.pci = "ffff:ff:1f.0";
    assert_int_equal(module->open(&source, &mapping, &fault), -ENODEV);
    source.pci = source.uuid = NULL;
    assert_int_equal(module->open(&source, &mapping, &fault), -ENODEV);
    uint8_t nonsense[64] = {1, 2, 3};
    source = source_of(&notice);
    source.fd = -1;
    source.handle = nonsense;
    source.handle_size = sizeof(nonsense);
    *fault.text = '\0';
    assert_true(module->open(&source, &mapping, &fault) < 0);
    assert_true(*fault.text);
    assert_null(mapping);
    process_end(&server, 0);
}

/* Descriptors that are no memory of a GPU, and memory that is smaller or larger than the daemon says. What is wrong is
 * told, nothing stays open, and the descriptor stays the caller's. */
static void test_wrong_descriptors(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    struct import_mapping *mapping = NULL;
    server_start(&server, "0", &notice);
    if (!exports_descriptors(&notice)) {
        process_end(&server, 0);
        print_message("exports handles\n");
        skip();
    }
    struct import_source source = source_of(&notice);
    /* The fake runtime maps nothing but all of an allocation. Others may map a part of it, which does no harm. */
    const uint64_t bytes[] = {
        1,         notice.bytes / 2, notice.bytes * 2, notice.bytes + (64ull << 20), UINT64_MAX / 2, UINT64_MAX / 2 + 1,
        UINT64_MAX};
    for (size_t i = fake.inject ? 0 : 2; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
        struct import_fault fault = {""};
        source.bytes = bytes[i];
        if (module->open(&source, &mapping, &fault) >= 0)
            fail_msg("opened with %llu bytes instead of %llu", (unsigned long long)bytes[i],
                     (unsigned long long)notice.bytes);
        assert_true(*fault.text);
    }
    int pipes[2], memfd = memfd_create("wrong", MFD_CLOEXEC), zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(ftruncate(memfd, (off_t)notice.bytes + (4 << 20)), 0);
    const int fds[] = {memfd, zero, pipes[0], 9999};
    source = source_of(&notice);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        struct import_fault fault = {""};
        source.fd = fds[i];
        assert_true(module->open(&source, &mapping, &fault) < 0);
        print_message("%s\n", fault.text);
        assert_true(*fault.text);
    }
    assert_null(mapping);
    assert_nothing_open();
    for (size_t i = 0; i < 3; i++)
        assert_true(fcntl(fds[i], F_GETFD) >= 0);
    /* The right one still works. */
    source = source_of(&notice);
    mapping = open_fine(&source);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    close(memfd);
    close(zero);
    close(pipes[0]);
    close(pipes[1]);
    process_end(&server, 0);
}

static void *open_and_close(void *argument)
{
    for (int i = 0; i < 20; i++) {
        struct import_mapping *mapping;
        struct import_fault fault;
        uint8_t got[4096];
        if (module->open(argument, &mapping, &fault) < 0 || module->read(mapping, 0, got, sizeof(got), &fault) < 0 ||
            memcmp(got, model.expected, sizeof(got)) != 0)
            return (void *)"failed";
        module->close(mapping);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    struct import_source source = source_of(&notice);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_and_close, &source), 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_nothing_open();
    process_end(&server, 0);
}

/* Once a device is known, CUDA's driver opens further memory on this thread, which has no context before and after. */
static void test_this_thread_is_not_changed(void **state)
{
    (void)state;
    struct process servers[3];
    struct notice notices[3];
    struct import_mapping *mappings[3];
    void *context = NULL;
    for (int i = 0; i < 3; i++) {
        server_start(&servers[i], "0", &notices[i]);
        const struct import_source source = source_of(&notices[i]);
        mappings[i] = open_fine(&source);
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(compare(mappings[i]), 0);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    int (*get_context)(void **ret) = NULL;
    *(void **)&get_context = driver ? dlsym(driver, "cuCtxGetCurrent") : NULL;
    if (get_context) {
        assert_int_equal(get_context(&context), 0);
        assert_null(context);
        dlclose(driver);
    }
    for (int i = 0; i < 3; i++) {
        module->close(mappings[i]);
        process_end(&servers[i], 0);
    }
    assert_nothing_open();
}

int main(int argc, char **argv)
{
    int r = import_rig_begin(argc, argv);
    if (r < 0)
        return r == -ENODEV ? 77 : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_second_device),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_wrong_descriptors),
        cmocka_unit_test(test_threads),    cmocka_unit_test(test_this_thread_is_not_changed),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    import_rig_end();
    return failures;
}
