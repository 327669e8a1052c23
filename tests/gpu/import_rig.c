#include "tests/gpu/import_rig.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* A test that takes longer has failed. */
#define SECONDS_MAX 120

const struct import_module *module;
struct model model;
struct rig fake;

static void *object; /* the shared object of the module */

static void model_build(void)
{
    const struct chunk_part parts[] = {
        {tensor_type_find(12), FORM_F16, 40000},
        {tensor_type_find(0), FORM_NATIVE, 100000},
        {tensor_type_find(2), FORM_NATIVE, 100000},
        {tensor_type_find(8), FORM_F32, 50000},
    };
    model_make(&model, parts, sizeof(parts) / sizeof(parts[0]), 0, 99);
}

/* --- notices --- */

/* Sends a notice through a socket, with its descriptor. */
static int notice_send(int socket, const struct notice *notice)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = (void *)(uintptr_t)notice, .iov_len = sizeof(*notice)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (notice->fd >= 0) {
        control.header =
            (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &notice->fd, sizeof(int));
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) == sizeof(*notice) ? 0 : -EIO;
}

/* Reads a notice; its `fd` becomes this process' descriptor. */
static int notice_receive(int socket, struct notice *ret)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {.iov_base = ret, .iov_len = sizeof(*ret)};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL) != sizeof(*ret))
        return -EIO;
    ret->fd = -1;
    if (CMSG_FIRSTHDR(&message))
        memcpy(&ret->fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    return 0;
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
    notice->fd = export.fd;
    memcpy(notice->handle, export.handle, sizeof(notice->handle));
    memcpy(notice->id, device->id, sizeof(notice->id));
    memcpy(notice->uuid, device->uuid, sizeof(notice->uuid));
    memcpy(notice->pci, device->pci, sizeof(notice->pci));
    return 0;
}

/* argv: "server" and the index of the device. Commands on standard input: 'f' frees the arena, 'l' loads again. The
 * server ends when its input ends. */
static int server_main(const char *which)
{
    struct rig rig;
    if (rig_load(&rig) < 0)
        return 1;
    /* How fast the link is, and whether exported memory comes back, is nothing to those who import. */
    const struct device_config config = {
        .workers = 2,
        .link_copies = 1,
        .link_bytes = 64u << 10,
        .trial_bytes = 4u << 20,
        .export_wish = rig_export_wish(),
    };
    struct device **devices;
    struct device_fault fault = {0};
    struct notice notice = {.fd = -1};
    int n = rig.module->open(&config, &devices, &fault);
    const unsigned index = (unsigned)atoi(which);
    if (n <= (int)index) {
        notice.status = n < 0 ? n : -ENODEV;
        fprintf(stderr, "no device: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        return notice_send(STDOUT_FILENO, &notice) < 0;
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
            notice.fd = -1;
            notice.status = device->ops->memory_free(device, &notice.free_after, &fault);
        }
        if (notice.status < 0)
            fprintf(stderr, "server: %s: %s (%d)\n", fault.call, fault.text, fault.code);
        if (notice_send(STDOUT_FILENO, &notice) < 0)
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

static void process_start(struct process *ret, const char *role, const char *argument)
{
    int in[2], out[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, in), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, out), 0);
    ret->pid = fork();
    assert_true(ret->pid >= 0);
    if (ret->pid == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execl("/proc/self/exe", program_invocation_name, role, argument, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    ret->in = in[1];
    ret->out = out[0];
    ret->fd = -1;
}

static void descriptor_keep(struct process *process, int fd)
{
    if (process->fd >= 0)
        close(process->fd);
    process->fd = fd;
}

int process_end(struct process *process, int signal)
{
    int status = 0;
    if (signal)
        kill(process->pid, signal);
    close(process->in);
    close(process->out);
    descriptor_keep(process, -1);
    waitpid(process->pid, &status, 0);
    return status;
}

static void notice_read(struct process *process, struct notice *ret)
{
    if (notice_receive(process->out, ret) < 0)
        fail_msg("the server ended");
    descriptor_keep(process, ret->fd);
}

void server_start(struct process *ret, const char *index, struct notice *ret_notice)
{
    process_start(ret, "server", index);
    notice_read(ret, ret_notice);
    assert_int_equal(ret_notice->status, 0);
}

void server_do(struct process *server, char command, struct notice *ret)
{
    descriptor_keep(server, -1);
    assert_int_equal(write(server->in, &command, 1), 1);
    notice_read(server, ret);
    assert_int_equal(ret->status, 0);
}

bool exports_descriptors(const struct notice *notice)
{
    return notice->fd >= 0;
}

struct import_source source_of(const struct notice *notice)
{
    return (struct import_source){
        .device = notice->id,
        .uuid = notice->uuid,
        .pci = notice->pci,
        .fd = notice->fd,
        .handle = notice->handle_size > 0 ? notice->handle : NULL,
        .handle_size = notice->handle_size,
        .bytes = notice->bytes,
    };
}

struct import_mapping *open_fine(const struct import_source *source)
{
    struct import_mapping *mapping = NULL;
    struct import_fault fault = {""};
    if (module->open(source, &mapping, &fault) < 0)
        fail_msg("%s", fault.text);
    assert_non_null(mapping->data);
    return mapping;
}

int compare(struct import_mapping *mapping)
{
    struct import_fault fault = {""};
    uint8_t *got = calloc(1, model.arena_bytes);
    int r = module->read(mapping, 0, got, model.arena_bytes, &fault);
    if (r == 0 && !model_same(&model, got))
        r = -EILSEQ;
    /* Neither from the start nor to the end. */
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

/* Becomes this user, without any rights of the old one. */
static int user_become(uid_t uid)
{
    return setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0 ? -errno : 0;
}

/* Goes on in a child, in PID and IPC namespaces of its own, with the /proc that belongs to them: the driver looks
 * there. The parent ends as the child does. */
static int apart_go(void)
{
    if (unshare(CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS) < 0 ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return -errno;
    pid_t child = fork();
    if (child < 0)
        return -errno;
    if (child == 0)
        return mount("proc", "/proc", "proc", 0, NULL) < 0 ? -errno : 0;
    int status = 0;
    close(STDOUT_FILENO);
    waitpid(child, &status, 0);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

/* What a client is to be before it calls the runtime. */
static int client_become(const char *how)
{
    if (strcmp(how, "apart") == 0)
        return apart_go();
    return *how ? user_become((uid_t)atoi(how)) : 0;
}

/* argv: "client" and how. Its input is a notice. It opens the memory, compares, writes the answer, and waits until its
 * input ends. */
static int client_main(const char *how)
{
    struct notice notice;
    struct import_mapping *mapping = NULL;
    struct answer answer = {0};
    int r = client_become(how);
    if (notice_receive(STDIN_FILENO, &notice) < 0)
        return 1;
    const struct import_source source = source_of(&notice);
    if (r < 0)
        import_fail(&answer.fault, r, "cannot become %s: %s", how, strerror(-r));
    else
        answer.fine = module->open(&source, &mapping, &answer.fault) == 0;
    if (notice.fd >= 0)
        close(notice.fd);
    answer.fine = answer.fine && compare(mapping) == 0;
    char end;
    if (write(STDOUT_FILENO, &answer, sizeof(answer)) != sizeof(answer) || read(STDIN_FILENO, &end, 1) != 0)
        return 1;
    if (mapping)
        module->close(mapping);
    return !answer.fine;
}

void client_start(struct process *ret, const struct notice *notice, const char *how)
{
    process_start(ret, "client", how);
    assert_int_equal(notice_send(ret->in, notice), 0);
}

void client_ask(struct process *client, struct answer *ret)
{
    assert_int_equal(read(client->out, ret, sizeof(*ret)), sizeof(*ret));
}

void client_ready(struct process *client)
{
    struct answer answer;
    client_ask(client, &answer);
    if (!answer.fine)
        fail_msg("the client: %s", answer.fault.text);
}

/* --- for tests --- */

void skip_on_hardware(void)
{
    if (!fake.inject) {
        print_message("needs tests/fake_hip\n");
        skip();
    }
}

void assert_open(int n)
{
    struct fake_hip_live live = {0};
    if (!fake.count)
        return;
    fake.count(&live);
    assert_int_equal(live.opened, n);
}

void assert_nothing_open(void)
{
    assert_open(0);
}

/* --- the program --- */

static int module_load(void)
{
    const char *path = getenv("ROCMFORGE_TEST_IMPORT");
    object = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    module = object ? dlsym(object, IMPORT_MODULE_SYMBOL) : NULL;
    if (!module || module->abi != IMPORT_ABI) {
        fprintf(stderr, "ROCMFORGE_TEST_IMPORT: %s\n", path && !object ? dlerror() : "no module of this version");
        return -ENOENT;
    }
    rig_find_fake(&fake, object);
    return 0;
}

/* Checks whether a server finds a device. */
static int device_ask(void)
{
    struct process server;
    struct notice notice;
    process_start(&server, "server", "0");
    if (notice_receive(server.out, &notice) < 0) {
        fprintf(stderr, "the server ended\n");
        return -EIO;
    }
    descriptor_keep(&server, notice.fd);
    process_end(&server, 0);
    return notice.status == -ENODEV ? -ENODEV : 0;
}

int import_rig_begin(int argc, char **argv)
{
    alarm(SECONDS_MAX);
    model_build();
    if (argc > 2 && strcmp(argv[1], "server") == 0)
        exit(server_main(argv[2]));
    int r = module_load();
    if (r < 0)
        return r;
    if (argc > 1 && strcmp(argv[1], "client") == 0)
        exit(client_main(argc > 2 ? argv[2] : ""));
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    signal(SIGPIPE, SIG_IGN);
    return device_ask();
}

void import_rig_end(void)
{
    model_drop(&model);
}

void *runtime_find(const char *name)
{
    return dlsym(object, name);
}
