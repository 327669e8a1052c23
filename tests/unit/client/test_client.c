/* Connections, to a daemon that is not there, accepts nobody, or dies. */
#include "client_rig.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static void test_connect_refused(void **state)
{
    (void)state;
    rf_client *client = (rf_client *)1;
    assert_int_equal(rf_connect("/nowhere/socket", &client), -ENOENT);
    assert_null(client);
    assert_says(NULL, "/nowhere/socket");

    char path[200];
    memset(path, 'x', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    assert_int_equal(rf_connect(path, &client), -ENAMETOOLONG);
    assert_int_equal(rf_connect("/dev/null", &client), -ECONNREFUSED);

    assert_int_equal(setenv("ROCMFORGE_SOCKET", "/nowhere/else", 1), 0);
    assert_int_equal(rf_connect(NULL, &client), -ENOENT);
    assert_says(NULL, "/nowhere/else");
    assert_int_equal(setenv("ROCMFORGE_SOCKET", "", 1), 0);
    assert_int_equal(setenv("XDG_RUNTIME_DIR", "/nowhere", 1), 0);
    assert_true(rf_connect(NULL, &client) < 0);
    assert_says(NULL, "rocmforge/io.rocmforge");
    assert_int_equal(unsetenv("ROCMFORGE_SOCKET"), 0);
    rf_close(NULL);
    assert_int_equal(rf_detach(NULL), 0);
}

/* A daemon that accepts nobody is waited for, but not for ever. */
static void test_connect_timeout(void **state)
{
    (void)state;
    char folder[] = "/tmp/rocmforge-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 0), 0);

    rf_client *clients[8], *client;
    size_t n = 0;
    int r;
    while ((r = rf_connect(address.sun_path, &client)) == 0) {
        assert_true(n < 8);
        clients[n++] = client;
    }
    assert_int_equal(r, -ETIMEDOUT);
    while (n > 0)
        rf_close(clients[--n]);
    close(listener);
    unlink(address.sun_path);
    rmdir(folder);
}

/* A daemon that has too many connections says so unasked. */
static void serve_refusal(struct fake *fake, int socket)
{
    (void)fake;
    fake_send(socket,
              "{\"error\":\"io.rocmforge.LimitExceeded\",\"parameters\":{\"limit\":\"connections\",\"value\":9}}", NULL,
              0);
}

static void test_connection_refused(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_refusal, NULL);
        if (i % 2)
            usleep(2000); /* the daemon has closed it by now */
        assert_int_equal(rig_call(client), -EDQUOT);
        assert_says(client, "connections: 9");
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* Dies after a number of bytes of a reply. */
static void serve_death(struct fake *fake, int socket)
{
    const char *part = fake_context(fake);
    (void)fake_request(fake, socket, NULL, NULL);
    fake_send_bytes(socket, part, strlen(part));
}

static void test_death(void **state)
{
    (void)state;
    static const char *const parts[] = {"", "{", "{\"parameters\":{}}"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_death, parts[i]);
        assert_int_equal(rig_call(client), -ECONNRESET);
        assert_says(client, "closed the connection");
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* Dies between calls; SIGPIPE would end the test. */
static void serve_one(struct fake *fake, int socket)
{
    (void)fake_request(fake, socket, NULL, NULL);
    fake_send(socket, "{}", NULL, 0);
}

static void test_death_between(void **state)
{
    (void)state;
    assert_ptr_equal(signal(SIGPIPE, SIG_DFL), SIG_DFL);
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_one, NULL);
    assert_int_equal(rig_call(client), 0);
    fake_stop(fake);
    assert_gone(client);
    rf_close(client);
}

static void serve_late(struct fake *fake, int socket)
{
    while (fake_request(fake, socket, NULL, NULL)) {
        usleep(50000);
        fake_send(socket, "{}", NULL, 0);
    }
}

static volatile sig_atomic_t n_signals;

static void count_signal(int signal)
{
    (void)signal;
    n_signals++;
}

static void test_signals(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = count_signal}, before;
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_late, NULL);
    struct itimerval timer = {.it_interval.tv_usec = 500, .it_value.tv_usec = 500};
    assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
    assert_int_equal(rig_call(client), 0);
    timer = (struct itimerval){0};
    assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
    assert_true(n_signals > 0);
    rig_stop(fake, client);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_connect_refused), RIG_TEST(test_connect_timeout), RIG_TEST(test_connection_refused),
        RIG_TEST(test_death),           RIG_TEST(test_death_between),   RIG_TEST(test_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
