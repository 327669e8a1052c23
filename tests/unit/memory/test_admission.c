/* daemon/memory/admission.c: what would have to go for a model, and when that is no use. Nothing is freed here; that is
 * tests/integration/test_residency*.py. */
#include "daemon/memory/residency.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define MIB ((uint64_t)1 << 20)

struct fixture {
    struct devices devices;
    struct registry registry;
    struct residency residency;
    struct device gpu, host;
};

static int fixture_make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture)
        return -1;
    registry_init(&fixture->registry, NULL);
    fixture->residency.registry = &fixture->registry;
    fixture->residency.devices = &fixture->devices;
    fixture->devices.devices[0] = &fixture->gpu;
    fixture->devices.devices[1] = &fixture->host;
    fixture->devices.n = 2;
    fixture->gpu.budget = fixture->host.budget = 100 * MIB;
    *state = fixture;
    return 0;
}

static int fixture_free(void **state)
{
    struct fixture *fixture = *state;
    struct model *model;
    while ((model = TAILQ_FIRST(&fixture->registry.models))) {
        registry_unreserve(model);
        registry_remove(&fixture->registry, model);
    }
    int left = fixture->gpu.used != 0 || fixture->host.used != 0;
    free(fixture);
    return left;
}

/* A model that takes so much of the device. */
static struct model *add(struct fixture *fixture, struct device *device, const char *name, enum model_state state,
                         uint64_t bytes)
{
    struct model *model = calloc(1, sizeof(*model));
    assert_non_null(model);
    strcpy(model->name, name);
    model->state = state;
    model->device = device;
    model->ttl = -1;
    model->published = PUBLICATION_NONE;
    LIST_INIT(&model->leases);
    assert_int_equal(registry_add(&fixture->registry, model), 0);
    model->idle_since = model->id;
    registry_reserve(model, bytes);
    return model;
}

/* What admission_choose() says of so much on the device, and so much that is due: *ret_n is how many have to go. On
 * failure nothing is told but what there was. */
static int choose_due(const struct fixture *fixture, struct device *device, uint64_t bytes, uint64_t due, size_t *ret_n)
{
    struct model *const nobody[1] = {NULL}, **victims = (struct model **)nobody;
    struct room_shortage shortage = {UINT64_MAX, UINT64_MAX};
    const struct admission_want want = {.device = device, .host = &fixture->host, .bytes = bytes, .due = due};
    size_t n = 77;
    int r = admission_choose(&fixture->registry, &want, &victims, &n, &shortage);
    if (r != -EDQUOT)
        assert_int_equal(shortage.available, device_available(device));
    if (r < 0) {
        assert_ptr_equal(victims, nobody);
        assert_int_equal(n, 77);
        return r;
    }
    free(victims);
    *ret_n = n;
    return 0;
}

static int choose(const struct fixture *fixture, struct device *device, uint64_t bytes, size_t *ret_n)
{
    return choose_due(fixture, device, bytes, 0, ret_n);
}

static void what_departs_has_to_suffice(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 0;
    add(fixture, &fixture->gpu, "departs", MODEL_UNLOADING, 10 * MIB);
    struct model *stays = add(fixture, &fixture->gpu, "stays", MODEL_RESIDENT, 80 * MIB);
    assert_int_equal(choose(fixture, &fixture->gpu, 10 * MIB, &n), 0);
    assert_int_equal(n, 0);
    assert_int_equal(choose(fixture, &fixture->gpu, 20 * MIB, &n), -EAGAIN);
    assert_int_equal(choose(fixture, &fixture->gpu, 100 * MIB, &n), -EAGAIN); /* with the one that may go */
    stays->pinned = true;
    assert_int_equal(choose(fixture, &fixture->gpu, 20 * MIB, &n), -EAGAIN);
    assert_int_equal(choose(fixture, &fixture->gpu, 20 * MIB + 1, &n), -ENOSPC);
    assert_int_equal(choose(fixture, &fixture->gpu, 100 * MIB, &n), -ENOSPC);
}

static void nothing_departs(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 0;
    add(fixture, &fixture->gpu, "a", MODEL_RESIDENT, 50 * MIB);
    add(fixture, &fixture->gpu, "b", MODEL_RESIDENT, 50 * MIB);
    add(fixture, &fixture->host, "elsewhere", MODEL_UNLOADING, 100 * MIB);
    assert_int_equal(choose(fixture, &fixture->gpu, 50 * MIB, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(choose(fixture, &fixture->gpu, 100 * MIB, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(choose(fixture, &fixture->gpu, 100 * MIB + 1, &n), -ENOSPC);
}

/* For what a header takes nobody waits: it is taken. */
static void due_against_what_departs(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 77;
    add(fixture, &fixture->host, "full", MODEL_FILLING, 90 * MIB);
    add(fixture, &fixture->host, "departs", MODEL_UNLOADING, 10 * MIB);
    assert_int_equal(choose_due(fixture, &fixture->gpu, 1, 10 * MIB + 1, &n), -EDQUOT);
    assert_int_equal(choose_due(fixture, &fixture->gpu, 1, 10 * MIB, &n), 0);
    assert_int_equal(n, 0);
    /* On the host itself the model has to have its memory as well, and waits for it. */
    assert_int_equal(choose_due(fixture, &fixture->host, MIB, 9 * MIB, &n), -EAGAIN);
    assert_int_equal(choose_due(fixture, &fixture->host, MIB, 10 * MIB, &n), -ENOSPC);
    assert_int_equal(choose_due(fixture, &fixture->host, MIB, 11 * MIB, &n), -EDQUOT);
}

/* Those who go for what is due and those who go for the model are chosen together, and before anybody goes. */
static void for_both(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 77;
    add(fixture, &fixture->gpu, "on-gpu", MODEL_RESIDENT, 100 * MIB);
    struct model *on_host = add(fixture, &fixture->host, "on-host", MODEL_RESIDENT, 60 * MIB);
    add(fixture, &fixture->host, "second", MODEL_RESIDENT, 40 * MIB);
    assert_int_equal(choose_due(fixture, &fixture->gpu, 50 * MIB, 10 * MIB, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(choose_due(fixture, &fixture->host, 50 * MIB, 10 * MIB, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(choose_due(fixture, &fixture->host, 51 * MIB, 10 * MIB, &n), 0);
    assert_int_equal(n, 2);
    on_host->pinned = true;
    assert_int_equal(choose_due(fixture, &fixture->gpu, 50 * MIB, 41 * MIB, &n), -EDQUOT);
    assert_int_equal(choose_due(fixture, &fixture->gpu, 101 * MIB, 40 * MIB, &n), -ENOSPC);
}

/* What is due counts once, whether the ledger has it by now or not. */
static void charged_already(void **state)
{
    struct fixture *fixture = *state;
    struct model *model = add(fixture, &fixture->host, "m", MODEL_OPENING, 0);
    struct admission_want want = {.device = &fixture->host, .host = &fixture->host, .bytes = 90 * MIB, .due = 10 * MIB};
    struct room_shortage shortage;
    for (int i = 0; i < 2; i++) {
        struct model **victims;
        size_t n;
        want.bytes = 90 * MIB;
        assert_int_equal(admission_choose(&fixture->registry, &want, &victims, &n, &shortage), 0);
        free(victims);
        want.bytes++;
        assert_int_equal(admission_choose(&fixture->registry, &want, &victims, &n, &shortage), -ENOSPC);
        if (!want.charged)
            registry_charge(model, &fixture->host, REGISTRY_OVERHEAD_FREE + 10 * MIB);
        want.charged = true;
    }
}

/* Others took memory that the ledger has given out: what idle models have is not enough to win by. */
static void others_took_some(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 77;
    add(fixture, &fixture->gpu, "a", MODEL_RESIDENT, 50 * MIB);
    add(fixture, &fixture->gpu, "b", MODEL_RESIDENT, 50 * MIB);
    fixture->gpu.reach = 60 * MIB;
    assert_int_equal(choose(fixture, &fixture->gpu, 10 * MIB, &n), 0);
    assert_int_equal(n, 1);
    assert_int_equal(choose(fixture, &fixture->gpu, 60 * MIB, &n), 0);
    assert_int_equal(n, 2);
    assert_int_equal(choose(fixture, &fixture->gpu, 61 * MIB, &n), -ENOSPC);
}

/* The host keeps the header of a model whose device is lost; that can go. */
static void of_a_lost_device(void **state)
{
    struct fixture *fixture = *state;
    size_t n = 0;
    struct model *lost = add(fixture, &fixture->gpu, "lost", MODEL_RESIDENT, 50 * MIB);
    registry_charge(lost, &fixture->host, REGISTRY_OVERHEAD_FREE + 60 * MIB);
    assert_int_equal(admission_evictable(&fixture->registry, &fixture->host), 0);
    assert_int_equal(choose(fixture, &fixture->host, 50 * MIB, &n), -ENOSPC);
    fixture->gpu.failed = true;
    model_move(lost, MODEL_FAILED);
    assert_int_equal(admission_evictable(&fixture->registry, &fixture->host), 60 * MIB);
    assert_int_equal(admission_evictable(&fixture->registry, &fixture->gpu), 0);
    assert_int_equal(choose(fixture, &fixture->host, 50 * MIB, &n), 0);
    assert_int_equal(n, 1);
    lost->pinned = true;
    assert_int_equal(choose(fixture, &fixture->host, 50 * MIB, &n), -ENOSPC);
    lost->pinned = false;
    lost->n_leases = 1;
    assert_int_equal(choose(fixture, &fixture->host, 50 * MIB, &n), -ENOSPC);
    lost->n_leases = 0;
    model_move(lost, MODEL_UNLOADING);
    assert_int_equal(choose(fixture, &fixture->host, 50 * MIB, &n), -EAGAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_departs_has_to_suffice, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(nothing_departs, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(of_a_lost_device, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(due_against_what_departs, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(for_both, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(charged_already, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(others_took_some, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
