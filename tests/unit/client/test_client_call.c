/* Calls, to a daemon that answers what it should not. */
#include "client_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

/* Answers each request with itself. */
static void serve_echo(struct fake *fake, int socket)
{
    const char *text;
    int *fds;
    size_t n_fds;
    while ((text = fake_request(fake, socket, &fds, &n_fds))) {
        char *reply;
        if (asprintf(&reply, "{\"parameters\":{\"request\":%s}}", text) < 0)
            abort();
        fake_send(socket, reply, fds, n_fds);
        free(reply);
    }
}

struct seen {
    char *text;
    size_t n_replies;
    size_t n_fds;
    int fd; /* of the first reply with one */
    int continues;
    int result;
};

static int see(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct seen *seen = context;
    free(seen->text);
    seen->text = strdup(parameters);
    seen->n_replies++;
    seen->n_fds = n_fds;
    seen->continues = continues;
    if (n_fds > 0 && seen->fd < 0) {
        seen->fd = fds[0];
        fds[0] = -1;
    }
    return seen->result;
}

static void test_call(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_echo, NULL);
    struct seen seen = {.fd = -1};
    assert_int_equal(rf_call(client, "List", NULL, 0, NULL, 0, see, &seen), 0);
    assert_string_equal(seen.text, "{\"request\":{\"method\":\"io.rocmforge.List\",\"parameters\":{}}}");
    assert_int_equal(seen.continues, 0);
    assert_int_equal(rf_call(client, "a.b-c.D", "{\"x\":[1,\"\xc3\xa9\"]}", RF_CALL_MORE, NULL, 0, see, &seen), 0);
    assert_string_equal(seen.text,
                        "{\"request\":{\"method\":\"a.b-c.D\",\"parameters\":{\"x\":[1,\"\xc3\xa9\"]},\"more\":"
                        "true}}");
    assert_int_equal(seen.n_replies, 2);
    assert_null(rf_error_name(client));
    assert_null(rf_error_parameters(client));
    assert_non_null(rf_error_message(client));
    assert_true(rf_client_fd(client) >= 0);
    free(seen.text);
    rig_stop(fake, client);
}

/* What the caller gets wrong is not sent, and the connection goes on. */
static void test_call_refused(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_echo, NULL);
    static const char *const parameters[] = {"", "1", "[]", "{", "{}}", "{\"a\":1,\"a\":1}", "{\"a\":\"\xff\"}", "{},"};
    for (size_t i = 0; i < sizeof(parameters) / sizeof(parameters[0]); i++)
        assert_int_equal(rf_call(client, "List", parameters[i], 0, NULL, 0, NULL, NULL), -EINVAL);
    assert_int_equal(rf_call(client, "Li\"st", NULL, 0, NULL, 0, NULL, NULL), -EINVAL);
    assert_int_equal(rf_call(client, "", NULL, 0, NULL, 0, NULL, NULL), -EINVAL);
    int bad = 1000;
    assert_int_equal(rf_call(client, "List", NULL, 0, &bad, 1, NULL, NULL), -EBADF);
    int fds[300] = {0};
    assert_int_equal(rf_call(client, "List", NULL, 0, fds, 300, NULL, NULL), -EINVAL);

    size_t size = 300u << 10;
    char *long_text = malloc(size + 1);
    assert_non_null(long_text);
    memset(long_text, ' ', size);
    memcpy(long_text, "{}", 2);
    long_text[size] = '\0';
    assert_int_equal(rf_call(client, "List", long_text, 0, NULL, 0, NULL, NULL), -EMSGSIZE);
    long_text[200u << 10] = '\0';
    assert_int_equal(rf_call(client, "List", long_text, 0, NULL, 0, NULL, NULL), 0);
    free(long_text);
    rig_stop(fake, client);
}

/* Descriptors go both ways; those that are not kept are closed. */
static void test_call_fds(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_echo, NULL);
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = fake_memfd("abc", 3, 3, 0);
    struct seen seen = {.fd = -1};
    assert_int_equal(rf_call(client, "Test", NULL, 0, fds, 3, see, &seen), 0);
    assert_int_equal(seen.n_fds, 3);
    struct stat sent, received;
    assert_int_equal(fstat(fds[0], &sent), 0);
    assert_int_equal(fstat(seen.fd, &received), 0);
    assert_int_equal(sent.st_ino, received.st_ino);
    assert_int_equal(fcntl(seen.fd, F_GETFD), FD_CLOEXEC);
    close(seen.fd);
    assert_int_equal(rf_call(client, "Test", NULL, 0, fds, 3, NULL, NULL), 0);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    free(seen.text);
    rig_stop(fake, client);
}

static void serve_several(struct fake *fake, int socket)
{
    while (fake_request(fake, socket, NULL, NULL)) {
        fake_send(socket, "{\"continues\":true,\"parameters\":{\"i\":1}}", NULL, 0);
        fake_send(socket, "{\"continues\":true}", NULL, 0);
        fake_send(socket, "{\"continues\":false,\"error\":null,\"parameters\":{\"i\":3}}", NULL, 0);
    }
}

static void test_several(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_several, NULL);
    for (size_t i = 1; i < 4; i++) {
        struct seen seen = {.fd = -1};
        assert_int_equal(rf_call(client, "Test", NULL, RF_CALL_MORE, NULL, 0, see, &seen), 0);
        assert_int_equal(seen.n_replies, 3);
        assert_int_equal(seen.continues, 0);
        assert_string_equal(seen.text, "{\"i\":3}");
        free(seen.text);
    }
    /* and without `more` nobody may send several */
    assert_int_equal(rig_call(client), -EPROTO);
    assert_gone(client);
    rig_stop(fake, client);
}

/* A caller that has enough ends the connection, unless it was the last reply anyway. */
static void test_ended_by_caller(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_several, NULL);
    struct seen seen = {.fd = -1, .result = -E2BIG};
    assert_int_equal(rf_call(client, "Test", NULL, RF_CALL_MORE, NULL, 0, see, &seen), -E2BIG);
    assert_int_equal(seen.n_replies, 1);
    assert_gone(client);
    rig_stop(fake, client);

    client = rig_start(&fake, serve_echo, NULL);
    assert_int_equal(rf_call(client, "Test", NULL, RF_CALL_MORE, NULL, 0, see, &seen), -E2BIG);
    assert_int_equal(rig_call(client), 0);
    free(seen.text);
    rig_stop(fake, client);
}

static int call_again(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    (void)parameters;
    (void)continues;
    (void)fds;
    (void)n_fds;
    return rig_call(context);
}

static void test_nested(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_echo, NULL);
    assert_int_equal(rf_call(client, "Test", NULL, 0, NULL, 0, call_again, client), -EDEADLK);
    assert_int_equal(rig_call(client), 0);
    rig_stop(fake, client);
}

/* The news that models are wanted back come beside any reply, and whatever is none is left out. */
static void hear(void *context, const char *name)
{
    strcat(strcat(context, name), ";");
}

static void test_draining(void **state)
{
    (void)state;
    static const struct {
        const char *reply, *heard;
        int result;
    } cases[] = {
        {"{\"parameters\":{\"draining\":[\"a\",\"b\"]}}", "a;b;", 0},
        {"{\"error\":\"io.rocmforge.Cancelled\",\"parameters\":{\"draining\":[\"a\"]}}", "a;", -ECANCELED},
        {"{\"parameters\":{\"draining\":[1,null,\"c\",[\"d\"]]}}", "c;", 0},
        {"{\"parameters\":{\"draining\":null}}", "", 0},
        {"{\"parameters\":{\"draining\":\"a\"}}", "", 0},
        {"{\"parameters\":{\"draining\":{\"x\":\"a\"}}}", "", 0},
        {"{}", "", 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake *fake;
        char heard[64] = "";
        rf_client *client = rig_start(&fake, serve_text, cases[i].reply);
        assert_int_equal(rig_call(client), cases[i].result); /* nobody listens */
        rf_on_draining(client, hear, heard);
        assert_int_equal(rig_call(client), cases[i].result);
        assert_string_equal(heard, cases[i].heard);
        rf_on_draining(client, NULL, NULL);
        assert_int_equal(rig_call(client), cases[i].result);
        assert_string_equal(heard, cases[i].heard);
        rig_stop(fake, client);
    }
}

static void test_malformed(void **state)
{
    (void)state;
    static const char *const replies[] = {
        "",
        " ",
        "x",
        "1",
        "[]",
        "null",
        "\"text\"",
        "{",
        "{}x",
        "{}{}",
        "{\"parameters\":[]}",
        "{\"parameters\":1}",
        "{\"parameters\":\"{}\"}",
        "{\"error\":1}",
        "{\"error\":{}}",
        "{\"error\":true,\"parameters\":{}}",
        "{\"continues\":1}",
        "{\"continues\":\"true\"}",
        "{\"continues\":true}",
        "{\"parameters\":{\"a\":}}",
        "\xff\xfe",
    };
    for (size_t i = 0; i < sizeof(replies) / sizeof(replies[0]); i++) {
        struct fake *fake;
        struct seen seen = {.fd = -1};
        rf_client *client = rig_start(&fake, serve_text, replies[i]);
        assert_int_equal(rf_call(client, "Test", NULL, 0, NULL, 0, see, &seen), -EPROTO);
        assert_int_equal(seen.n_replies, 0);
        assert_says(client, "the daemon sent an invalid reply");
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* Names of fields have their case. */
static void test_case(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_text, "{\"ERROR\":\"x\",\"Continues\":true,\"PARAMETERS\":{\"a\":1}}");
    struct seen seen = {.fd = -1};
    assert_int_equal(rf_call(client, "Test", NULL, 0, NULL, 0, see, &seen), 0);
    assert_string_equal(seen.text, "{}");
    free(seen.text);
    rig_stop(fake, client);
}

/* Sends a pattern until nobody listens any more. */
struct flood {
    const char *begin, *pattern;
    size_t n;
};

static void serve_flood(struct fake *fake, int socket)
{
    const struct flood *flood = fake_context(fake);
    if (!fake_request(fake, socket, NULL, NULL))
        return;
    size_t length = strlen(flood->pattern), copies = 4096;
    char *block = malloc(length * copies);
    if (!block)
        abort();
    for (size_t i = 0; i < copies; i++)
        memcpy(block + i * length, flood->pattern, length);
    int open = fake_send_bytes(socket, flood->begin, strlen(flood->begin));
    for (size_t i = 0; open && i < flood->n; i += copies)
        open = fake_send_bytes(socket, block, length * copies);
    if (open)
        fake_send_bytes(socket, "", 1);
    free(block);
    (void)fake_request(fake, socket, NULL, NULL);
}

static void test_flood(void **state)
{
    (void)state;
    static const struct flood floods[] = {
        {"{\"parameters\":{\"a\":\"", "xxxxxxxxxxxxxxxx", 5u << 20}, /* 80 MiB */
        {"{\"parameters\":{\"a\":[0", ",0", 12u << 20},
        {"{\"parameters\":{\"a\":", "[", 1u << 20},
        {"{\"parameters\":{\"a\":", "{\"b\":", 1u << 20},
    };
    for (size_t i = 0; i < sizeof(floods) / sizeof(floods[0]); i++) {
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_flood, &floods[i]);
        assert_int_equal(rig_call(client), -EPROTO);
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* A reply of many megabytes is fine. */
static void serve_large(struct fake *fake, int socket)
{
    (void)fake_context(fake);
    static const char begin[] = "{\"parameters\":{\"a\":\"", end[] = "\"}}";
    while (fake_request(fake, socket, NULL, NULL)) {
        char *block = malloc(1u << 20);
        if (!block)
            abort();
        memset(block, 'x', 1u << 20);
        fake_send_bytes(socket, begin, strlen(begin));
        for (int i = 0; i < 32; i++)
            fake_send_bytes(socket, block, 1u << 20);
        fake_send_bytes(socket, end, sizeof(end));
        free(block);
    }
}

static void test_large(void **state)
{
    (void)state;
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_large, NULL);
    struct seen seen = {.fd = -1};
    assert_int_equal(rf_call(client, "Test", NULL, 0, NULL, 0, see, &seen), 0);
    assert_int_equal(strlen(seen.text), strlen("{\"a\":\"\"}") + (32u << 20));
    free(seen.text);
    rig_stop(fake, client);
}

/* A reply that nobody asked for. */
static void serve_two(struct fake *fake, int socket)
{
    while (fake_request(fake, socket, NULL, NULL))
        fake_send_bytes(socket, "{}\0{}", fake_context(fake) ? 4 : 6);
}

static void test_unasked(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct fake *fake;
        rf_client *client = rig_start(&fake, serve_two, i ? &i : NULL);
        assert_int_equal(rig_call(client), 0);
        assert_int_equal(rig_call(client), -EPROTO);
        assert_says(client, "belongs to no call");
        assert_gone(client);
        rig_stop(fake, client);
    }
}

/* Takes requests, and answers none of them. */
static void serve_silence(struct fake *fake, int socket)
{
    while (fake_request(fake, socket, NULL, NULL))
        ;
}

/* A user of the library who will not wait says so to the socket. */
static void test_late(void **state)
{
    (void)state;
    const struct timeval limit = {.tv_usec = 1000};
    struct fake *fake;
    rf_client *client = rig_start(&fake, serve_silence, NULL);
    assert_int_equal(setsockopt(rf_client_fd(client), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), 0);
    assert_int_equal(rig_call(client), -ETIMEDOUT);
    assert_says(client, "the daemon did not answer in time");
    assert_null(rf_error_name(client));
    assert_gone(client);
    rig_stop(fake, client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_call),     RIG_TEST(test_call_refused),    RIG_TEST(test_call_fds),
        RIG_TEST(test_several),  RIG_TEST(test_ended_by_caller), RIG_TEST(test_nested),
        RIG_TEST(test_draining), RIG_TEST(test_malformed),       RIG_TEST(test_case),
        RIG_TEST(test_flood),    RIG_TEST(test_large),           RIG_TEST(test_unasked),
        RIG_TEST(test_late),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
