/* daemon/session/waiters.c: who waits for a load, in the order they came, until they leave. */
#include "daemon/session/waiters.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

static unsigned deserted_times;

static void deserted(struct waiters *waiters)
{
    assert_true(waiters_empty(waiters));
    deserted_times++;
}

/* What a connection does when its client has gone. */
static void leave(struct call *call)
{
    assert_non_null(call->abandoned);
    call->abandoned(call);
}

static void in_the_order_they_came(void **state)
{
    (void)state;
    struct waiters waiters;
    struct call calls[4] = {0};
    static const enum waiter_kind kinds[] = {WAIT_RESIDENT, WAIT_ATTACH, WAIT_ATTACH, WAIT_END};
    waiters_init(&waiters, deserted);
    assert_true(waiters_empty(&waiters));
    for (size_t i = 0; i < 4; i++)
        assert_true(waiters_add(&waiters, &calls[i], kinds[i]));
    assert_null(waiters_take(&waiters, WAIT_ALLOCATED));
    assert_ptr_equal(waiters_take(&waiters, WAIT_ATTACH), &calls[1]);
    assert_null(calls[1].abandoned); /* it may leave now without our knowing */
    enum waiter_kind kind;
    assert_ptr_equal(waiters_take_any(&waiters, &kind), &calls[0]);
    assert_int_equal(kind, WAIT_RESIDENT);
    assert_ptr_equal(waiters_take_any(&waiters, &kind), &calls[2]);
    assert_ptr_equal(waiters_take_any(&waiters, &kind), &calls[3]);
    assert_int_equal(kind, WAIT_END);
    assert_null(waiters_take_any(&waiters, &kind));
    assert_true(waiters_empty(&waiters));
}

static void the_last_one_to_leave_is_told_of(void **state)
{
    (void)state;
    struct waiters waiters;
    struct call calls[3] = {0};
    waiters_init(&waiters, deserted);
    deserted_times = 0;
    for (size_t i = 0; i < 3; i++)
        assert_true(waiters_add(&waiters, &calls[i], WAIT_RESIDENT));
    leave(&calls[1]);
    leave(&calls[0]);
    assert_int_equal(deserted_times, 0);
    leave(&calls[2]);
    assert_int_equal(deserted_times, 1);
    assert_true(waiters_add(&waiters, &calls[0], WAIT_RESIDENT));
    assert_ptr_equal(waiters_take(&waiters, WAIT_RESIDENT), &calls[0]); /* answered: that is not leaving */
    assert_int_equal(deserted_times, 1);
}

/* Behind those of the other load; who began a load has only joined one now. And they leave that other one. */
static void moving(void **state)
{
    (void)state;
    struct waiters from, to;
    struct call calls[3] = {0};
    waiters_init(&from, deserted);
    waiters_init(&to, deserted);
    deserted_times = 0;
    assert_true(waiters_add(&to, &calls[0], WAIT_RESIDENT));
    assert_true(waiters_add(&from, &calls[1], WAIT_RESIDENT));
    assert_true(waiters_add(&from, &calls[2], WAIT_ATTACH));
    waiters_move(&from, &to);
    assert_true(waiters_empty(&from));
    assert_int_equal(deserted_times, 0);
    leave(&calls[0]);
    enum waiter_kind kind;
    assert_ptr_equal(waiters_take_any(&to, &kind), &calls[1]);
    assert_int_equal(kind, WAIT_JOINED);
    leave(&calls[2]);
    assert_int_equal(deserted_times, 1);
    assert_true(waiters_empty(&to));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_the_order_they_came),
        cmocka_unit_test(the_last_one_to_leave_is_told_of),
        cmocka_unit_test(moving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
