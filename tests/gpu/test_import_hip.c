/* The import module, and that memory which a device module made is the same in another process.
 *
 * A handle cannot be opened by the process that made it. So this program starts itself again as a server, which plays
 * the daemon, and opens what that exports; and as clients, to be killed.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the device module; ROCMFORGE_TEST_IMPORT, the import module. Exits 77 without a
 * device.
 *
 * test_import_hip [TEST]: all, or those whose names match. */
#include "client/import.h"
#include "tests/gpu/rig.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define CLIENTS 8

/* A user who owns nothing. */
#define NOBODY 65534

/* What the server says when it is ready, and after each command. */
struct notice {
    int status; /* of opening the device, or of the command */
    unsigned devices;
    uint64_t bytes;
    uint64_t free_before, free_after; /* of the device: before the model, and now */
    char id[32], uuid[64], pci[24];
    uint8_t handle[64];
    size_t handle_size;
};

static const struct import_module *module;
static struct model model;

/* What the import module runs on: NULL functions on a real GPU. */
static struct rig fake;
static int (*get_device)(int *device);
static int (*set_device)(int device);
static int (*get_last_error)(void);
static void (*capture)(int device);
static bool (*captured)(void);
static void (*hold)(const char *call);

static void model_build(void)
{
    const struct part parts[] = {
        {tensor_type_find(12), FORM_F16, 40000},
        {tensor_type_find(0), FORM_NATIVE, 100000},
        {tensor_type_find(2), FORM_NATIVE, 100000},
        {tensor_type_find(8), FORM_F32, 50000},
    };
    model_make(&model, parts, sizeof(parts) / sizeof(parts[0]), 0, 99);
}

/* --- the server --- */

static int server_load(struct device *device, struct slots *slots, struct arena **arena, struct notice *notice,
                       struct device_fault *fault)
{
    struct outcome outcome;
    struct device_export export;
    int r = device->ops->memory_free(device, &notice->free_before, fault);
    if (r == 0)
        r = arena_make(device, model.arena_bytes, arena, fault);
    if (r < 0)
        return r;
    model_put(&model, slots, *arena, 1u << 20, true, &outcome);
    if (outcome.status < 0)
        return outcome.status;
    r = device->ops->arena_export(*arena, &export, fault);
    if (r == 0)
        r = device->ops->arena_seal(*arena, fault);
    if (r < 0)
        return r;
    notice->bytes = model.arena_bytes;
    notice->handle_size = export.handle_size;
    memcpy(notice->handle, export.handle, sizeof(notice->handle));
    memcpy(notice->id, device->id, sizeof(notice->id));
    memcpy(notice->uuid, device->uuid, sizeof(notice->uuid));
    memcpy(notice->pci, device->pci, sizeof(notice->pci));
    return 0;
}

/* argv: "server", the index of the device. On its standard input: 'f' frees the arena, 'l' loads again; the end of it
 * ends the server. */
static int server_main(const char *which)
{
    struct rig rig;
    if (rig_load(&rig) < 0)
        return 1;
    const struct device_config config = {.workers = 2};
    struct device **devices;
    struct device_fault fault = {0};
    struct notice notice = {0};
    int n = rig.module->open(&config, &devices, &fault);
    const unsigned index = (unsigned)atoi(which);
    if (n <= (int)index) {
        notice.status = n < 0 ? n : -ENODEV;
        fprintf(stderr, "no device: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        return write(STDOUT_FILENO, &notice, sizeof(notice)) < 0;
    }
    struct device *device = devices[index];
    struct slots slots;
    struct arena *arena = NULL;
    char command = 'l';
    notice.devices = (unsigned)n;
    if (slots_make(&slots, device, 3, &fault) < 0)
        return 1;
    do {
        if (command == 'l')
            notice.status = server_load(device, &slots, &arena, &notice, &fault);
        if (command == 'f') {
            device->ops->arena_free(arena);
            arena = NULL;
            notice.status = device->ops->memory_free(device, &notice.free_after, &fault);
        }
        if (notice.status < 0)
            fprintf(stderr, "server: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        if (write(STDOUT_FILENO, &notice, sizeof(notice)) != sizeof(notice))
            return 1;
    } while (read(STDIN_FILENO, &command, 1) == 1);
    device->ops->arena_free(arena);
    slots_drop(&slots);
    for (int i = 0; i < n; i++)
        devices[i]->ops->close(devices[i]);
    free(devices);
    return 0;
}

/* --- other processes --- */

struct process {
    pid_t pid;
    int in, out; /* its standard input and output, from our side */
};

static void process_start(struct process *ret, const char *role, const char *argument)
{
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    ret->pid = fork();
    assert_true(ret->pid >= 0);
    if (ret->pid == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execl("/proc/self/exe", "test_import_hip", role, argument, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    ret->in = in[1];
    ret->out = out[0];
}

/* Returns its wait status. */
static int process_end(struct process *process, int signal)
{
    int status = 0;
    if (signal)
        kill(process->pid, signal);
    close(process->in);
    close(process->out);
    waitpid(process->pid, &status, 0);
    return status;
}

static void notice_read(struct process *process, struct notice *ret)
{
    for (size_t done = 0; done < sizeof(*ret);) {
        ssize_t n = read(process->out, (char *)ret + done, sizeof(*ret) - done);
        if (n <= 0)
            fail_msg("the server ended");
        done += (size_t)n;
    }
}

static void server_start(struct process *ret, const char *index, struct notice *ret_notice)
{
    process_start(ret, "server", index);
    notice_read(ret, ret_notice);
    assert_int_equal(ret_notice->status, 0);
}

static void server_do(struct process *server, char command, struct notice *ret)
{
    assert_int_equal(write(server->in, &command, 1), 1);
    notice_read(server, ret);
    assert_int_equal(ret->status, 0);
}

static struct import_source source_of(const struct notice *notice)
{
    return (struct import_source){
        .device = notice->id,
        .uuid = notice->uuid,
        .pci = notice->pci,
        .fd = -1,
        .handle = notice->handle,
        .handle_size = notice->handle_size,
        .bytes = notice->bytes,
    };
}

static struct import_mapping *open_fine(const struct import_source *source)
{
    struct import_mapping *mapping = NULL;
    struct import_fault fault = {""};
    if (module->open(source, &mapping, &fault) < 0)
        fail_msg("%s", fault.text);
    assert_non_null(mapping->data);
    return mapping;
}

static int compare(struct import_mapping *mapping)
{
    struct import_fault fault = {""};
    uint8_t *got = calloc(1, model.arena_bytes);
    int r = module->read(mapping, 0, got, model.arena_bytes, &fault);
    if (r == 0 && !model_same(&model, got))
        r = -EILSEQ;
    /* Not from the start, and not to the end. */
    uint8_t part[678];
    if (r == 0)
        r = module->read(mapping, 12345, part, sizeof(part), &fault);
    if (r == 0 && memcmp(got + 12345, part, sizeof(part)) != 0)
        r = -EILSEQ;
    free(got);
    if (r < 0)
        fprintf(stderr, "%s %s\n", strerror(-r), fault.text);
    return r;
}

/* Becomes this user for good, without any right of the old one. */
static int user_become(uid_t uid)
{
    return setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0 ? -errno : 0;
}

/* What a client says. */
struct answer {
    bool fine;
    struct import_fault fault;
};

/* argv: "client", and the user that it becomes before it asks the runtime anything; "": it stays who it is. Its input:
 * a notice. Opens, compares, says what came of it, and stays until its input ends. */
static int client_main(const char *user)
{
    struct notice notice;
    struct import_mapping *mapping = NULL;
    struct answer answer = {0};
    if (*user && user_become((uid_t)atoi(user)) < 0)
        return 1;
    if (read(STDIN_FILENO, &notice, sizeof(notice)) != sizeof(notice))
        return 1;
    const struct import_source source = source_of(&notice);
    answer.fine = module->open(&source, &mapping, &answer.fault) == 0 && compare(mapping) == 0;
    char end;
    if (write(STDOUT_FILENO, &answer, sizeof(answer)) != sizeof(answer) || read(STDIN_FILENO, &end, 1) != 0)
        return 1;
    if (mapping)
        module->close(mapping);
    return !answer.fine;
}

static void client_start(struct process *ret, const struct notice *notice, const char *user)
{
    process_start(ret, "client", user);
    assert_int_equal(write(ret->in, notice, sizeof(*notice)), sizeof(*notice));
}

static void client_ask(struct process *client, struct answer *ret)
{
    assert_int_equal(read(client->out, ret, sizeof(*ret)), sizeof(*ret));
}

static void client_ready(struct process *client)
{
    struct answer answer;
    client_ask(client, &answer);
    if (!answer.fine)
        fail_msg("the client: %s", answer.fault.text);
}

static void skip_on_hardware(void)
{
    if (!fake.inject) {
        print_message("needs tests/fake_hip\n");
        skip();
    }
}

static void assert_open(int n)
{
    struct fake_hip_live live = {0};
    if (!fake.count)
        return;
    fake.count(&live);
    assert_int_equal(live.opened, n);
}

static void assert_nothing_open(void)
{
    assert_open(0);
}

/* --- tests --- */

/* The caller's device and last error are as they were, and of a device that is not used nothing is taken. The first
 * test: what is taken stays so. */
static void test_thread_of_the_caller(void **state)
{
    (void)state;
    skip_on_hardware();
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    process_end(&server, 0);
    if (notice.devices < 2)
        skip();
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
        source.handle = nonsense;
        assert_true(module->open(&source, &mapping, &fault) < 0);
        assert_int_equal(get_last_error(), 0);
        fake.count(&live);
        assert_int_equal(live.contexts, device ? 2 : 3);
        assert_int_equal(get_device(&current), 0);
        assert_int_equal(current, 1 - device);
        /* The second time it is another that is current. */
        assert_int_equal(set_device(device), 0);
        process_end(&server, 0);
    }
    assert_nothing_open();
}

static struct import_source swept;
static unsigned swept_errors;

/* Opens, reads and closes: right bytes, or an error that names the call; and nothing stays open. */
static bool open_read_close(const char *spec)
{
    struct import_mapping *mapping = NULL;
    struct import_fault fault = {""};
    uint8_t got[5000];
    int r = module->open(&swept, &mapping, &fault);
    if (r == 0)
        r = module->read(mapping, 100, got, sizeof(got), &fault);
    if (r == 0)
        assert_memory_equal(got, model.expected + 100, sizeof(got));
    if (mapping)
        module->close(mapping);
    const bool fired = fake.fired();
    if (r < 0) {
        if (!fired)
            fail_msg("%s", fault.text);
        swept_errors++;
        const size_t name = strcspn(spec, ":");
        if (strncmp(fault.text, spec, name) != 0 || fault.text[name] != ':')
            fail_msg("%s: %s", spec, fault.text);
    }
    /* A device that cannot be made current, or be waited for, keeps what is open until that is opened and closed again.
     */
    static const char *const keep[] = {"hipSetDevice:", "hipThreadExchangeStreamCaptureMode:", "hipDeviceSynchronize:"};
    for (size_t i = 0; spec && i < sizeof(keep) / sizeof(keep[0]); i++) {
        if (strncmp(spec, keep[i], strlen(keep[i])) != 0)
            continue;
        fake.inject(NULL);
        module->close(open_fine(&swept));
    }
    assert_nothing_open();
    return fired;
}

static void test_each_call_fails(void **state)
{
    (void)state;
    skip_on_hardware();
    static const char *const codes[] = {"999", "719", "2", "900"};
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    if (notice.devices > 1) {
        process_end(&server, 0);
        server_start(&server, "1", &notice);
    }
    swept = source_of(&notice);
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        swept_errors = 0;
        rig_sweep(&fake, getenv("ROCMFORGE_TEST_IMPORT"), codes[i], open_read_close);
        print_message("%u of them were told\n", swept_errors);
        assert_true(swept_errors > 0);
    }
    process_end(&server, 0);
}

/* The program captures a graph, and opens and reads meanwhile: neither breaks that. Closing does, and leaves open what
 * the device may be reading. */
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

    /* What the handle leads to by now is not known to be the same. */
    struct import_fault fault;
    assert_int_equal(module->open(&source, &mapping, &fault), -EBUSY);
    assert_string_equal(fault.text, "hipDeviceSynchronize: not permitted while capturing (900)");
    assert_open(1);
    capture(-1);
    mapping = open_fine(&source);
    assert_open(1);
    assert_int_equal(compare(mapping), 0);

    /* Closed with whatever is closed next on that device. */
    capture(0);
    module->close(mapping);
    capture(-1);
    assert_open(1);
    struct notice other;
    server_do(&server, 'f', &other);
    server_do(&server, 'l', &other);
    const struct import_source next = source_of(&other);
    mapping = open_fine(&next);
    assert_int_equal(compare(mapping), 0);
    assert_open(2);
    module->close(mapping);
    assert_nothing_open();
    process_end(&server, 0);
}

static unsigned long calls_of(const char *call)
{
    const char *name;
    unsigned long n;
    for (unsigned i = 0; fake.call(i, &name, &n); i++)
        if (strcmp(name, call) == 0)
            return n;
    return 0;
}

static void *open_only(void *argument)
{
    struct import_mapping *mapping;
    struct import_fault fault;
    return module->open(argument, &mapping, &fault) < 0 ? NULL : mapping;
}

/* The handle of a process that does not answer: what else is attached does not wait for it. */
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
    fake.inject(NULL);
    hold("hipIpcOpenMemHandle");
    pthread_t threads[2];
    struct import_mapping *opened[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_only, &sources[1]), 0);
    while (calls_of("hipIpcOpenMemHandle") == 0)
        usleep(1000);
    struct import_mapping *again = open_fine(&sources[0]);
    assert_int_equal(compare(other), 0);
    module->close(other);
    module->close(again);
    assert_nothing_open();
    hold(NULL);
    for (int i = 0; i < 2; i++) {
        void *mapping;
        pthread_join(threads[i], &mapping);
        assert_non_null(mapping);
        assert_open(1);
        assert_int_equal(compare(mapping), 0);
        opened[i] = mapping;
    }
    /* The second waited for what the first had begun. */
    assert_int_equal(calls_of("hipIpcOpenMemHandle"), 1);
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
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    process_end(&server, 0);
    if (notice.devices < 2)
        skip();
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

static unsigned long calls_made(void)
{
    const char *name;
    unsigned long n, sum = 0;
    for (unsigned i = 0; fake.call && fake.call(i, &name, &n); i++)
        sum += n;
    return sum;
}

/* In a child nothing can be done with what its parent has opened, and closing it does nothing to it. */
static int forked(struct import_mapping *mapping, const struct import_source *source)
{
    const unsigned long calls = calls_made();
    struct import_mapping *other;
    struct import_fault fault = {""};
    uint8_t byte;
    if (module->read(mapping, 0, &byte, 1, &fault) != -ENOTSUP || !strstr(fault.text, "forked") ||
        module->open(source, &other, &fault) != -ENOTSUP)
        return 1;
    module->close(mapping);
    return calls_made() == calls ? 0 : 2;
}

static void test_fork(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    const struct import_source source = source_of(&notice);
    struct import_mapping *mapping = open_fine(&source);
    pid_t pid = fork();
    if (pid == 0)
        _exit(forked(mapping, &source));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    assert_nothing_open();
    process_end(&server, 0);
}

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
    /* Each works until it is closed, whichever comes first. */
    module->close(first);
    assert_int_equal(compare(second), 0);
    first = open_fine(&source);
    module->close(second);
    assert_int_equal(compare(first), 0);
    module->close(first);
    assert_nothing_open();
    server_do(&server, 'f', &notice);
    /* This process opened its first handle meanwhile, and the runtime took its share of the device. */
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
    /* One of the two identities is enough. */
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
    source.handle_size = 63;
    assert_int_equal(module->open(&source, &mapping, &fault), -EPROTO);
    source = source_of(&notice);
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
    source.handle = nonsense;
    *fault.text = '\0';
    assert_true(module->open(&source, &mapping, &fault) < 0);
    assert_true(*fault.text);
    assert_null(mapping);
    process_end(&server, 0);
}

static void test_client_killed(void **state)
{
    (void)state;
    struct process server, client;
    struct notice notice;
    server_start(&server, "0", &notice);
    for (int i = 0; i < 3; i++) {
        client_start(&client, &notice, "");
        client_ready(&client);
        assert_int_equal(WTERMSIG(process_end(&client, SIGKILL)), SIGKILL);
        server_do(&server, 'f', &notice);
        assert_int_equal(notice.free_before, notice.free_after);
        server_do(&server, 'l', &notice);
    }
    assert_int_equal(process_end(&server, 0), 0);
}

static void skip_without_users(void)
{
    if (geteuid() != 0) {
        print_message("needs root, to be another user\n");
        skip();
    }
}

/* Whoever may connect to the daemon may open what it exports, whichever user that is. */
static void test_another_user(void **state)
{
    (void)state;
    skip_without_users();
    struct process server, client;
    struct notice notice;
    char user[16];
    snprintf(user, sizeof(user), "%d", NOBODY);
    server_start(&server, "0", &notice);
    client_start(&client, &notice, user);
    client_ready(&client);
    assert_int_equal(process_end(&client, 0), 0);
    server_do(&server, 'f', &notice);
    assert_int_equal(notice.free_before, notice.free_after);
    assert_int_equal(process_end(&server, 0), 0);
}

/* Where the driver does not let him, he is told so. */
static void test_another_user_is_refused(void **state)
{
    (void)state;
    skip_on_hardware();
    skip_without_users();
    struct process server, client;
    struct notice notice;
    struct answer answer;
    char user[16];
    snprintf(user, sizeof(user), "%d", NOBODY);
    server_start(&server, "0", &notice);
    setenv("FAKE_HIP_OWN_ONLY", "1", 1);
    client_start(&client, &notice, user);
    unsetenv("FAKE_HIP_OWN_ONLY");
    client_ask(&client, &answer);
    assert_false(answer.fine);
    assert_string_equal(answer.fault.text, "hipIpcOpenMemHandle: invalid handle (400)");
    assert_int_equal(WEXITSTATUS(process_end(&client, 0)), 1);
    assert_int_equal(process_end(&server, 0), 0);
}

static void test_server_killed(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    const struct import_source source = source_of(&notice);
    struct import_mapping *mapping = open_fine(&source);
    assert_int_equal(compare(mapping), 0);
    process_end(&server, SIGKILL);
    /* What is read now is undefined; that closing returns is not. */
    module->close(mapping);
    assert_nothing_open();
    struct import_fault fault = {""};
    assert_true(module->open(&source, &mapping, &fault) < 0);
    server_start(&server, "0", &notice);
    const struct import_source next = source_of(&notice);
    mapping = open_fine(&next);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    process_end(&server, 0);
}

static void test_many_clients(void **state)
{
    (void)state;
    struct process server, clients[CLIENTS];
    struct notice notice;
    server_start(&server, "0", &notice);
    for (int i = 0; i < CLIENTS; i++)
        client_start(&clients[i], &notice, "");
    for (int i = 0; i < CLIENTS; i++)
        client_ready(&clients[i]);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(process_end(&clients[i], 0), 0);
    server_do(&server, 'f', &notice);
    assert_int_equal(notice.free_before, notice.free_after);
    assert_int_equal(process_end(&server, 0), 0);
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

int main(int argc, char **argv)
{
    /* Whatever hangs is a failure. */
    alarm(120);
    model_build();
    if (argc > 2 && strcmp(argv[1], "server") == 0)
        return server_main(argv[2]);
    const char *path = getenv("ROCMFORGE_TEST_IMPORT");
    void *object = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    module = object ? dlsym(object, IMPORT_MODULE_SYMBOL) : NULL;
    if (!module || module->abi != IMPORT_ABI) {
        fprintf(stderr, "ROCMFORGE_TEST_IMPORT: %s\n", path && !object ? dlerror() : "no module of this version");
        return 1;
    }
    rig_find_fake(&fake, object);
    if (fake.inject) {
        *(void **)&get_device = dlsym(object, "hipGetDevice");
        *(void **)&set_device = dlsym(object, "hipSetDevice");
        *(void **)&get_last_error = dlsym(object, "hipGetLastError");
        *(void **)&capture = dlsym(object, "fake_hip_capture");
        *(void **)&captured = dlsym(object, "fake_hip_captured");
        *(void **)&hold = dlsym(object, "fake_hip_hold");
    }
    if (argc > 1 && strcmp(argv[1], "client") == 0)
        return client_main(argc > 2 ? argv[2] : "");
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    signal(SIGPIPE, SIG_IGN);
    struct process server;
    struct notice notice;
    process_start(&server, "server", "0");
    if (read(server.out, &notice, sizeof(notice)) != sizeof(notice))
        return 1;
    process_end(&server, 0);
    if (notice.status == -ENODEV)
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_of_the_caller),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_second_device),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_client_killed),
        cmocka_unit_test(test_another_user),
        cmocka_unit_test(test_another_user_is_refused),
        cmocka_unit_test(test_server_killed),
        cmocka_unit_test(test_many_clients),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_capture),
        cmocka_unit_test(test_a_handle_that_takes_long),
        cmocka_unit_test(test_a_device_that_does_not_answer),
        cmocka_unit_test(test_each_call_fails),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    model_drop(&model);
    return failures;
}
