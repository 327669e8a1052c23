/* daemon/base/state.h: state machines, on the example that stands there. */
#include "daemon/base/state.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

enum door { DOOR_OPEN, DOOR_SHUT, DOOR_LOCKED };

static const struct state states[] = {
    [DOOR_OPEN] = {"open", STATE(DOOR_SHUT)},
    [DOOR_SHUT] = {"shut", STATE(DOOR_OPEN) | STATE(DOOR_LOCKED)},
    [DOOR_LOCKED] = {"locked", STATE(DOOR_SHUT)},
};
static const struct state_machine machine = STATE_MACHINE(states);

static void what_may_follow(void **state)
{
    (void)state;
    static const bool may[3][3] = {
        [DOOR_OPEN] = {[DOOR_SHUT] = true},
        [DOOR_SHUT] = {[DOOR_OPEN] = true, [DOOR_LOCKED] = true},
        [DOOR_LOCKED] = {[DOOR_SHUT] = true},
    };
    for (unsigned from = 0; from < 3; from++)
        for (unsigned to = 0; to < 3; to++)
            assert_int_equal(state_may_follow(&machine, from, to), may[from][to]);
}

static void numbers_that_are_no_state(void **state)
{
    (void)state;
    static const unsigned others[] = {3, 31, 32, 33, ~0u};
    for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        for (unsigned known = 0; known < 3; known++) {
            assert_false(state_may_follow(&machine, others[i], known));
            assert_false(state_may_follow(&machine, known, others[i]));
        }
        assert_string_equal(state_name(&machine, others[i]), "unknown");
    }
    assert_string_equal(state_name(&machine, DOOR_LOCKED), "locked");
}

static void moving(void **state)
{
    (void)state;
    enum door door = DOOR_OPEN;
    state_move(&machine, &door, DOOR_SHUT);
    state_move(&machine, &door, DOOR_LOCKED);
    assert_int_equal(door, DOOR_LOCKED);
    pid_t child = fork();
    if (child == 0) {
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){0});
        (void)close(STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        state_move(&machine, &door, DOOR_OPEN);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_may_follow),
        cmocka_unit_test(numbers_that_are_no_state),
        cmocka_unit_test(moving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
