/* daemon/session/session.c: leases end with their connection, in turns if that takes long, and a client is told of
 * models that drain, until a reply that says so was queued. On real connections. */
#include "daemon/model/registry.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/turns.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

struct fixture {
    uv_loop_t loop;
    struct quota *quota;
    struct counters counters;
    struct registry registry;
    struct conns *conns;
    struct model model;
    struct conn *conn;  /* of the last call */
    size_t reply_bytes; /* of the text in the next reply */
    int client;
    bool closed;
};

/* The call's method says what is done: "lease" takes one, anything else just answers. */
static void dispatch(struct call *call, void *context)
{
    struct fixture *fixture = context;
    fixture->conn = call->conn;
    if (strcmp(call->method, "lease") == 0) {
        struct lease *lease;
        uint64_t limit;
        assert_int_equal(lease_grant(&fixture->registry, &fixture->model, session_holder(call->conn), &lease, &limit),
                         0);
    }
    cJSON *reply = cJSON_CreateObject();
    char *text = malloc(fixture->reply_bytes + 1);
    assert_non_null(text);
    memset(text, 'x', fixture->reply_bytes);
    text[fixture->reply_bytes] = '\0';
    cJSON_AddStringToObject(reply, "text", text);
    free(text);
    call_reply(call, reply, NULL, 0);
}

static const struct conn_hooks hooks = {
    .dispatch = dispatch,
    .opened = session_opened,
    .closed = session_closed,
    .replying = session_replying,
    .replied = session_replied,
};

static void turn(struct fixture *fixture)
{
    for (int i = 0; i < 4; i++)
        uv_run(&fixture->loop, UV_RUN_NOWAIT);
}

/* Sends a call and returns what is answered; static. */
static const char *ask(struct fixture *fixture, const char *method)
{
    static char answer[4096];
    char message[128];
    int n = snprintf(message, sizeof(message), "{\"method\":\"%s\"}", method);
    assert_int_equal(send(fixture->client, message, (size_t)n + 1, 0), n + 1);
    turn(fixture);
    ssize_t got = recv(fixture->client, answer, sizeof(answer) - 1, MSG_DONTWAIT);
    assert_true(got > 0);
    answer[got] = '\0';
    return answer;
}

static int fixture_make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    int sockets[2];
    const struct quota_limits limits = QUOTA_DEFAULTS;
    if (!fixture || uv_loop_init(&fixture->loop) < 0 || quota_new(&limits, &fixture->quota) < 0 ||
        conns_new(&fixture->loop, &hooks, fixture, fixture->quota, &fixture->counters, &fixture->conns) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets) < 0 ||
        conn_open(fixture->conns, sockets[0]) < 0)
        return -1;
    registry_init(&fixture->registry, fixture->quota);
    fixture->client = sockets[1];
    fixture->model.state = MODEL_RESIDENT;
    strcpy(fixture->model.name, "m");
    LIST_INIT(&fixture->model.leases);
    *state = fixture;
    return 0;
}

static void conns_gone(void *context)
{
    struct fixture *fixture = context;
    fixture->closed = true;
}

static int fixture_free(void **state)
{
    struct fixture *fixture = *state;
    conns_close(fixture->conns, conns_gone, fixture);
    turn(fixture);
    close(fixture->client);
    const bool left = !fixture->closed || fixture->model.n_leases > 0 || uv_loop_close(&fixture->loop) < 0;
    quota_free(fixture->quota); /* asserts that nobody is charged */
    free(fixture);
    return left;
}

static void told_once(void **state)
{
    struct fixture *fixture = *state;
    ask(fixture, "lease");
    ask(fixture, "lease");
    assert_null(strstr(ask(fixture, "other"), "draining"));
    fixture->model.state = MODEL_DRAINING;
    assert_non_null(strstr(ask(fixture, "other"), "\"draining\":[\"m\"]")); /* two leases, one name */
    assert_null(strstr(ask(fixture, "other"), "draining"));
}

/* A reply that is too long becomes an error, which does not have the names: the next reply does. */
static void told_again_if_the_reply_was_replaced(void **state)
{
    struct fixture *fixture = *state;
    ask(fixture, "lease");
    fixture->model.state = MODEL_DRAINING;
    fixture->reply_bytes = CONN_QUEUE_MAX;
    const char *answer = ask(fixture, "other");
    assert_non_null(strstr(answer, "LimitExceeded"));
    assert_null(strstr(answer, "draining"));
    fixture->reply_bytes = 0;
    assert_non_null(strstr(ask(fixture, "other"), "\"draining\":[\"m\"]"));
    assert_null(strstr(ask(fixture, "other"), "draining"));
}

static void leases_end_with_the_connection(void **state)
{
    struct fixture *fixture = *state;
    ask(fixture, "lease");
    ask(fixture, "lease");
    assert_int_equal(fixture->model.n_leases, 2);
    shutdown(fixture->client, SHUT_RDWR);
    turn(fixture);
    assert_int_equal(fixture->model.n_leases, 0);
    assert_int_equal(conns_count(fixture->conns), 0);
}

static void waste_a_turn(void *context, struct model *model)
{
    (void)context;
    (void)model;
    const uint64_t began = uv_hrtime();
    while (uv_hrtime() - began < 2 * TURNS_NS)
        ;
}

static void run_until_leases(struct fixture *fixture, size_t n)
{
    const size_t before = fixture->model.n_leases;
    for (int i = 0; i < 8 && fixture->model.n_leases == before; i++)
        uv_run(&fixture->loop, UV_RUN_NOWAIT);
    assert_int_equal(fixture->model.n_leases, n);
    assert_int_equal(fixture->registry.n_leases, n);
}

/* Each takes long to end: others have their turns between. */
static void leases_end_in_turns(void **state)
{
    struct fixture *fixture = *state;
    for (int i = 0; i < 4; i++)
        ask(fixture, "lease");
    fixture->registry.lease_ended = waste_a_turn;
    shutdown(fixture->client, SHUT_RDWR);
    for (size_t n = 4; n-- > 0;)
        run_until_leases(fixture, n);
    turn(fixture);
    assert_int_equal(conns_count(fixture->conns), 0);
}

/* fixture_free() looks whether some are left. */
static void leases_end_at_the_end(void **state)
{
    struct fixture *fixture = *state;
    for (int i = 0; i < 4; i++)
        ask(fixture, "lease");
    fixture->registry.lease_ended = waste_a_turn;
    shutdown(fixture->client, SHUT_RDWR);
    run_until_leases(fixture, 3);
    assert_int_equal(conns_count(fixture->conns), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(told_once, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(told_again_if_the_reply_was_replaced, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(leases_end_with_the_connection, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(leases_end_in_turns, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(leases_end_at_the_end, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
