/* daemon/device/scheduler.c: slots are shared by bytes, whoever wants them. */
#include "daemon/device/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define SLOTS 4

static int slot_init(struct device *device, struct slot *slot, struct device_fault *ret_fault)
{
    (void)device;
    (void)slot;
    (void)ret_fault;
    return 0;
}

static void slot_fini(struct device *device, struct slot *slot)
{
    (void)device;
    (void)slot;
}

static const struct device_ops ops = {.slot_init = slot_init, .slot_fini = slot_fini};

struct fixture {
    struct device device;
    struct scheduler *scheduler;
};

/* Wants `left` bytes, `chunk` at a time, and keeps the slots until they are returned. */
struct user {
    struct consumer consumer;
    uint64_t chunk;
    uint64_t left;
    uint64_t got;
    struct slot *slots[SLOTS];
    size_t n;
};

static uint64_t use(struct consumer *consumer, struct slot *slot)
{
    struct user *user = (struct user *)consumer;
    uint64_t bytes = user->chunk < user->left ? user->chunk : user->left;
    if (bytes == 0)
        return 0;
    assert_true(user->n < SLOTS);
    user->slots[user->n++] = slot;
    user->left -= bytes;
    user->got += bytes;
    return bytes;
}

static struct user user_new(uint64_t left, uint64_t chunk)
{
    return (struct user){.consumer.use = use, .chunk = chunk, .left = left};
}

static void give_one(struct fixture *fixture, struct user *user)
{
    scheduler_give(fixture->scheduler, user->slots[--user->n]);
}

/* Returns one slot of somebody who has one, as chance has it. False if nobody has any. */
static bool give_any(struct fixture *fixture, struct user *users, size_t n)
{
    size_t holders[8], n_holders = 0;
    for (size_t i = 0; i < n; i++)
        if (users[i].n > 0)
            holders[n_holders++] = i;
    if (n_holders == 0)
        return false;
    give_one(fixture, &users[holders[(size_t)random() % n_holders]]);
    return true;
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    fixture->device = (struct device){.ops = &ops, .slot_bytes = 1 << 20, .n_slots = SLOTS};
    assert_int_equal(staging_new(&fixture->device, &fixture->device.staging, NULL), 0);
    assert_int_equal(scheduler_new(&fixture->device, &fixture->scheduler), 0);
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    scheduler_free(fixture->scheduler);
    staging_free(fixture->device.staging); /* which asserts that every slot came back */
    free(fixture);
    return 0;
}

static void one_gets_everything(void **state)
{
    struct fixture *fixture = *state;
    struct user user = user_new(100, 7);
    scheduler_add(fixture->scheduler, &user.consumer);
    assert_int_equal(user.n, SLOTS);
    while (user.n > 0)
        give_one(fixture, &user);
    assert_int_equal(user.got, 100);
    assert_false(user.consumer.scheduled);
}

static void bytes_are_shared_and_not_slots(void **state)
{
    struct fixture *fixture = *state;
    srandom(1);
    struct user users[] = {user_new(10000000, 1000), user_new(10000000, 100), user_new(10000000, 370)};
    for (size_t i = 0; i < 3; i++)
        scheduler_add(fixture->scheduler, &users[i].consumer);
    for (int i = 0; i < 30000 && give_any(fixture, users, 3); i++)
        for (size_t j = 0; j < 3; j++)
            for (size_t k = 0; k < 3; k++)
                if (i > 100)
                    assert_true(users[j].got <= users[k].got + 2 * SLOTS * 1000);
    for (size_t i = 0; i < 3; i++) {
        scheduler_remove(fixture->scheduler, &users[i].consumer);
        users[i].left = 0;
    }
    while (give_any(fixture, users, 3))
        ;
}

static void who_comes_late_is_neither_behind_nor_ahead(void **state)
{
    struct fixture *fixture = *state;
    struct user large = user_new(1000000, 1000), small = user_new(5000, 1000);
    scheduler_add(fixture->scheduler, &large.consumer);
    for (int i = 0; i < 500; i++)
        give_one(fixture, &large);
    uint64_t before = large.got;
    scheduler_add(fixture->scheduler, &small.consumer);
    while (small.left > 0)
        give_one(fixture, large.n > 0 ? &large : &small);
    /* Both got as much, but for what was under way when it came; it did not get all that the other had before. */
    assert_true(large.got - before >= 3000);
    assert_true(large.got - before <= 5000 + SLOTS * 1000);
    large.left = 0;
    while (large.n > 0 || small.n > 0)
        give_one(fixture, large.n > 0 ? &large : &small);
}

static void who_leaves_gets_no_more(void **state)
{
    struct fixture *fixture = *state;
    struct user user = user_new(100, 1);
    scheduler_add(fixture->scheduler, &user.consumer);
    scheduler_remove(fixture->scheduler, &user.consumer);
    scheduler_remove(fixture->scheduler, &user.consumer);
    while (user.n > 0)
        give_one(fixture, &user);
    assert_int_equal(user.got, SLOTS);
    struct user nothing = user_new(0, 1);
    scheduler_add(fixture->scheduler, &nothing.consumer);
    assert_false(nothing.consumer.scheduled);
}

static void nobody_starves(void **state)
{
    struct fixture *fixture = *state;
    srandom(3);
    for (int round = 0; round < 200; round++) {
        struct user users[8];
        uint64_t wanted[8];
        size_t n = 1 + (size_t)random() % 8;
        for (size_t i = 0; i < n; i++) {
            wanted[i] = (uint64_t)random() % 5000;
            users[i] = user_new(wanted[i], 1 + (uint64_t)random() % 300);
        }
        size_t added = 0;
        do {
            if (added < n && random() % 3 == 0) {
                scheduler_add(fixture->scheduler, &users[added].consumer);
                added++;
            }
        } while (give_any(fixture, users, added) || added < n);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(users[i].got, wanted[i]);
            assert_false(users[i].consumer.scheduled);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_gets_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(bytes_are_shared_and_not_slots, setup, teardown),
        cmocka_unit_test_setup_teardown(who_comes_late_is_neither_behind_nor_ahead, setup, teardown),
        cmocka_unit_test_setup_teardown(who_leaves_gets_no_more, setup, teardown),
        cmocka_unit_test_setup_teardown(nobody_starves, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
