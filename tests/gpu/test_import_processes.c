/* The import module and other processes, on a GPU or on tests/fake_hip: clients and servers that are killed, many
 * clients, clients of another user, and a child after fork(). Exits 77 if there is no device.
 *
 * test_import_processes [TEST]: all tests, or those whose names match. */
#include "tests/gpu/import_rig.h"

#include <errno.h>
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

/* A user who owns no files. */
#define NOBODY 65534

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

/* Any user who can connect to the daemon can open what it exports. */
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

/* If the driver refuses that, the user gets an error. */
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
    if (exports_descriptors(&notice)) {
        process_end(&server, 0);
        print_message("exports descriptors\n");
        skip();
    }
    setenv("FAKE_HIP_OWN_ONLY", "1", 1);
    client_start(&client, &notice, user);
    unsetenv("FAKE_HIP_OWN_ONLY");
    client_ask(&client, &answer);
    assert_false(answer.fine);
    assert_string_equal(answer.fault.text, "hipIpcOpenMemHandle: invalid handle (400)");
    assert_int_equal(WEXITSTATUS(process_end(&client, 0)), 1);
    assert_int_equal(process_end(&server, 0), 0);
}

/* In other PID and IPC namespaces a descriptor is as good as in the same; a handle cannot be opened there, except with
 * some of CUDA's drivers. */
static void test_client_apart(void **state)
{
    (void)state;
    struct process server, client;
    struct notice notice;
    struct answer answer;
    server_start(&server, "0", &notice);
    client_start(&client, &notice, "apart");
    client_ask(&client, &answer);
    process_end(&client, 0);
    process_end(&server, 0);
    print_message("%s\n", answer.fine ? "opened" : answer.fault.text);
    if (strstr(answer.fault.text, "cannot become apart"))
        skip();
    if (!exports_descriptors(&notice))
        skip_on_hardware();
    assert_int_equal(answer.fine, exports_descriptors(&notice));
}

static void test_server_killed_that_exports_handles(const struct notice *notice, struct process *server)
{
    const struct import_source source = source_of(notice);
    struct import_mapping *mapping = open_fine(&source);
    assert_int_equal(compare(mapping), 0);
    process_end(server, SIGKILL);
    /* What a read returns now is undefined, but closing has to return. */
    module->close(mapping);
    assert_nothing_open();
    struct import_fault fault = {""};
    assert_true(module->open(&source, &mapping, &fault) < 0);
}

/* What is mapped stays, and what somebody holds a descriptor of can still be mapped. */
static void test_server_killed_that_exports_descriptors(const struct notice *notice, struct process *server)
{
    struct import_source source = source_of(notice);
    struct import_mapping *mapping = open_fine(&source);
    source.fd = dup(notice->fd);
    process_end(server, SIGKILL);
    assert_int_equal(compare(mapping), 0);
    struct import_mapping *second = open_fine(&source);
    close(source.fd);
    assert_int_equal(compare(second), 0);
    module->close(mapping);
    assert_int_equal(compare(second), 0);
    module->close(second);
    assert_nothing_open();
}

static void test_server_killed(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    if (exports_descriptors(&notice))
        test_server_killed_that_exports_descriptors(&notice, &server);
    else
        test_server_killed_that_exports_handles(&notice, &server);
    server_start(&server, "0", &notice);
    const struct import_source next = source_of(&notice);
    struct import_mapping *mapping = open_fine(&next);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    process_end(&server, 0);
}

/* To free memory that a client still has mapped takes nothing from the client. */
static void test_freed_while_a_client_reads(void **state)
{
    (void)state;
    struct process server;
    struct notice notice;
    server_start(&server, "0", &notice);
    if (!exports_descriptors(&notice)) {
        process_end(&server, 0);
        print_message("exports handles\n");
        skip();
    }
    const struct import_source source = source_of(&notice);
    struct import_mapping *mapping = open_fine(&source);
    server_do(&server, 'f', &notice);
    assert_int_equal(compare(mapping), 0);
    server_do(&server, 'l', &notice);
    assert_int_equal(compare(mapping), 0);
    module->close(mapping);
    assert_nothing_open();
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

static unsigned long calls_made(void)
{
    const char *name;
    unsigned long n, sum = 0;
    for (unsigned i = 0; fake.call && fake.call(i, &name, &n); i++)
        sum += n;
    return sum;
}

/* A child cannot use what its parent opened, and closing it in the child does nothing to the parent. */
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

int main(int argc, char **argv)
{
    int r = import_rig_begin(argc, argv);
    if (r < 0)
        return r == -ENODEV ? 77 : 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_client_killed),
        cmocka_unit_test(test_another_user),
        cmocka_unit_test(test_another_user_is_refused),
        cmocka_unit_test(test_client_apart),
        cmocka_unit_test(test_server_killed),
        cmocka_unit_test(test_freed_while_a_client_reads),
        cmocka_unit_test(test_many_clients),
        cmocka_unit_test(test_fork),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    import_rig_end();
    return failures;
}
