/* The import module on tests/fake_hip: calls of the runtime that fail or take long, and a program that uses the runtime
 * itself. Exits 77 if there is no device.
 *
 * test_import_faults [TEST]: all tests, or those whose names match. */
#include "tests/gpu/import_rig.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Functions of the runtime that the module is linked with. */
static int (*get_device)(int *device);
static int (*set_device)(int device);
static int (*get_last_error)(void);
static void (*capture)(int device);
static bool (*captured)(void);
static void (*hold)(const char *call);

static void skip_below_two_devices(void)
{
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    process_end(&server, 0);
    if (notice.devices < 2) {
        print_message("one device\n");
        skip();
    }
}

/* The caller's current device and last error do not change, and no memory is taken on a device that is not used.
 * This is the first test, because such memory stays taken. */
static void test_thread_of_the_caller(void **state)
{
    (void)state;
    skip_on_hardware();
    skip_below_two_devices();
    struct process server;
    struct notice notice;
    struct fake_hip_live live;
    struct import_mapping *mapping;
    struct import_fault fault;
    uint8_t nonsense[64] = {1};
    for (int device = 1; device >= 0; device--) {
        int current = -1;
        server_start(&server, device ? "1" : "0", &notice);
        struct import_source source = source_of(&notice);
        mapping = open_fine(&source);
        assert_int_equal(compare(mapping), 0);
        module->close(mapping);
        source.fd = -1;
        source.handle = nonsense;
        source.handle_size = sizeof(nonsense);
        assert_true(module->open(&source, &mapping, &fault) < 0);
        assert_int_equal(get_last_error(), 0);
        fake.count(&live);
        assert_int_equal(live.contexts, device ? 2 : 3);
        assert_int_equal(get_device(&current), 0);
        assert_int_equal(current, 1 - device);
        /* The second time another device is current. */
        assert_int_equal(set_device(device), 0);
        process_end(&server, 0);
    }
    assert_nothing_open();
}

/* Memory of two servers: one exports descriptors, the other handles. */
static struct import_source swept[2];
static unsigned swept_errors;

static int open_read_close_one(const struct import_source *source, struct import_fault *fault)
{
    struct import_mapping *mapping = NULL;
    uint8_t got[5000];
    int r = module->open(source, &mapping, fault);
    if (r == 0)
        r = module->read(mapping, 100, got, sizeof(got), fault);
    if (r == 0)
        assert_memory_equal(got, model.expected + 100, sizeof(got));
    if (mapping)
        module->close(mapping);
    return r;
}

/* Opens, reads and closes. The bytes are right or the error names the call, and nothing stays open. */
static bool open_read_close(const char *spec)
{
    struct import_fault fault = {""};
    int r = open_read_close_one(&swept[0], &fault);
    if (r == 0 && !fake.fired())
        r = open_read_close_one(&swept[1], &fault);
    const bool fired = fake.fired();
    if (r < 0) {
        if (!fired)
            fail_msg("%s", fault.text);
        swept_errors++;
        const size_t name = strcspn(spec, ":");
        if (strncmp(fault.text, spec, name) != 0 || fault.text[name] != ':')
            fail_msg("%s: %s", spec, fault.text);
    }
    /* If the device cannot be made current or waited for, the memory stays mapped until it is opened and closed
     * again. */
    static const char *const keep[] = {"hipSetDevice:", "hipThreadExchangeStreamCaptureMode:", "hipDeviceSynchronize:"};
    for (size_t i = 0; spec && i < sizeof(keep) / sizeof(keep[0]); i++) {
        if (strncmp(spec, keep[i], strlen(keep[i])) != 0)
            continue;
        fake.inject(NULL);
        for (size_t k = 0; k < 2; k++)
            module->close(open_fine(&swept[k]));
    }
    assert_nothing_open();
    return fired;
}

static void test_each_call_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    static const char *const codes[] = {"999", "719", "2", "900"};
    struct process servers[2];
    struct notice notices[2];
    const char *wish = getenv("ROCMFORGE_TEST_EXPORT"), *device = "0";
    char before[8];
    snprintf(before, sizeof(before), "%s", wish ? wish : "");
    for (size_t i = 0; i < 2; i++) {
        setenv("ROCMFORGE_TEST_EXPORT", i == 0 ? "fd" : "ipc", 1);
        server_start(&servers[i], device, &notices[i]);
        if (i == 0 && notices[i].devices > 1) {
            process_end(&servers[i], 0);
            device = "1";
            server_start(&servers[i], device, &notices[i]);
        }
        swept[i] = source_of(&notices[i]);
    }
    setenv("ROCMFORGE_TEST_EXPORT", before, 1);
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        swept_errors = 0;
        rig_sweep(&fake, getenv("ROCMFORGE_TEST_IMPORT"), codes[i], open_read_close);
        print_message("%u of them were told\n", swept_errors);
        assert_true(swept_errors > 0);
    }
    for (size_t i = 0; i < 2; i++)
        process_end(&servers[i], 0);
}

/* The program captures a graph and opens and reads during that: this does not break the capture. Closing breaks it,
 * and leaves the memory mapped, since the device may be reading it. */
static void test_capture(void **state)
{
    (void)state;
    skip_on_hardware();
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    const struct import_source source = source_of(&notice);
    capture(0);
    struct import_mapping *mapping = open_fine(&source);
    assert_int_equal(compare(mapping), 0);
    assert_true(captured());
    module->close(mapping);
    assert_false(captured());
    assert_open(1);

    if (exports_descriptors(&notice)) {
        mapping = open_fine(&source);
        assert_open(2);
        capture(-1);
    } else {
        /* The handle may mean other memory by now. */
        struct import_fault fault;
        assert_int_equal(module->open(&source, &mapping, &fault), -EBUSY);
        assert_string_equal(fault.text, "hipDeviceSynchronize: not permitted while capturing (900)");
        assert_open(1);
        capture(-1);
        mapping = open_fine(&source);
        assert_open(1);
    }
    const int open = exports_descriptors(&notice) ? 2 : 1;
    assert_int_equal(compare(mapping), 0);

    /* Closed when the next memory on that device is closed. */
    capture(0);
    module->close(mapping);
    capture(-1);
    assert_open(open);
    struct notice other;
    server_do(&server, 'f', &other);
    server_do(&server, 'l', &other);
    const struct import_source next = source_of(&other);
    mapping = open_fine(&next);
    assert_int_equal(compare(mapping), 0);
    assert_open(open + 1);
    module->close(mapping);
    assert_nothing_open();
    process_end(&server, 0);
}

static void *open_only(void *argument)
{
    struct import_mapping *mapping;
    struct import_fault fault;
    return module->open(argument, &mapping, &fault) < 0 ? NULL : mapping;
}

/* A process does not answer, so opening its handle takes long. Other attaches do not wait for it. */
static void test_a_handle_that_takes_long(void **state)
{
    (void)state;
    skip_on_hardware();
    struct process servers[2];
    struct notice notices[2];
    struct import_source sources[2];
    for (int i = 0; i < 2; i++) {
        server_start(&servers[i], "0", &notices[i]);
        sources[i] = source_of(&notices[i]);
    }
    struct import_mapping *other = open_fine(&sources[0]);
    const bool by_descriptor = exports_descriptors(&notices[0]);
    const char *call = by_descriptor ? "hipMemImportFromShareableHandle" : "hipIpcOpenMemHandle";
    struct import_mapping *again = by_descriptor ? open_fine(&sources[0]) : NULL;
    fake.inject(NULL);
    hold(call);
    pthread_t threads[2];
    struct import_mapping *opened[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_only, &sources[1]), 0);
    while (rig_calls(&fake, call) == 0)
        usleep(1000);
    if (!by_descriptor)
        again = open_fine(&sources[0]); /* opened already, so nothing is called for it */
    assert_int_equal(compare(other), 0);
    module->close(other);
    module->close(again);
    assert_nothing_open();
    hold(NULL);
    for (int i = 0; i < 2; i++) {
        void *mapping;
        pthread_join(threads[i], &mapping);
        assert_non_null(mapping);
        assert_int_equal(compare(mapping), 0);
        opened[i] = mapping;
    }
    /* The second one waited until the first had opened the handle. Descriptors are opened each for itself. */
    assert_open(by_descriptor ? 2 : 1);
    assert_int_equal(rig_calls(&fake, call), by_descriptor ? 2 : 1);
    for (int i = 0; i < 2; i++) {
        module->close(opened[i]);
        process_end(&servers[i], 0);
    }
    assert_nothing_open();
}

static void test_a_device_that_does_not_answer(void **state)
{
    (void)state;
    skip_on_hardware();
    skip_below_two_devices();
    struct process server;
    struct notice notice;
    server_start(&server, "1", &notice);
    const struct import_source source = source_of(&notice);
    static const char *const others[] = {"hipDeviceGetUuid:1", "hipDeviceGetPCIBusId:1"};
    for (size_t i = 0; i < 2; i++) {
        fake.inject(others[i]);
        module->close(open_fine(&source));
        assert_true(fake.fired());
    }
    struct import_mapping *mapping;
    struct import_fault fault;
    fake.inject("hipDeviceGetUuid:2");
    assert_int_equal(module->open(&source, &mapping, &fault), -EIO);
    assert_string_equal(fault.text, "hipDeviceGetUuid: another error (999)");
    fake.inject(NULL);
    process_end(&server, 0);
}

static void find_runtime(void)
{
    *(void **)&get_device = runtime_find("hipGetDevice");
    *(void **)&set_device = runtime_find("hipSetDevice");
    *(void **)&get_last_error = runtime_find("hipGetLastError");
    *(void **)&capture = runtime_find("fake_hip_capture");
    *(void **)&captured = runtime_find("fake_hip_captured");
    *(void **)&hold = runtime_find("fake_hip_hold");
}

int main(int argc, char **argv)
{
    int r = import_rig_begin(argc, argv);
    if (r < 0)
        return r == -ENODEV ? 77 : 1;
    find_runtime();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_of_the_caller), /* the first */
        cmocka_unit_test(test_capture),
        cmocka_unit_test(test_a_handle_that_takes_long),
        cmocka_unit_test(test_a_device_that_does_not_answer),
        cmocka_unit_test(test_each_call_fails),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    import_rig_end();
    return failures;
}
