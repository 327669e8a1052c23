/* daemon/model/registry.c: models by name and by file, and the ledgers. */
#include "daemon/model/registry.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define MIB ((uint64_t)1 << 20)

static const struct peer root = {.uid = 0};

struct fixture {
    struct registry registry;
    struct device gpu, host;
};

static int fixture_make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    registry_init(&fixture->registry, NULL);
    fixture->gpu.budget = 100;
    fixture->host.budget = 10 * MIB;
    *state = fixture;
    return fixture ? 0 : -1;
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

static struct model *add_named(struct fixture *fixture, const char *name, const char *takes, uint64_t inode, uid_t uid)
{
    struct model *model = calloc(1, sizeof(*model));
    struct source *source = calloc(1, sizeof(*source) + sizeof(source->files[0]));
    assert_non_null(model);
    assert_non_null(source);
    source->references = source->n_files = 1;
    source->files[0] = (struct source_file){.fd = -1, .identity = {.ino = inode}};
    strcpy(model->name, name);
    strcpy(model->takes, takes);
    model->uid = uid;
    model->state = MODEL_RESIDENT;
    model->device = &fixture->gpu;
    model->source = source;
    model->forms = forms_plain(FORM_AUTO);
    model->published = PUBLICATION_NONE;
    LIST_INIT(&model->leases);
    assert_int_equal(registry_add(&fixture->registry, model), 0);
    return model;
}

static struct model *add_by(struct fixture *fixture, const char *name, uint64_t inode, uid_t uid)
{
    return add_named(fixture, name, "", inode, uid);
}

static struct model *add_taking(struct fixture *fixture, const char *name)
{
    return add_named(fixture, name, name, 1, 0);
}

static struct model *add(struct fixture *fixture, const char *name, uint64_t inode)
{
    return add_by(fixture, name, inode, 0);
}

static void ids_are_never_used_twice(void **state)
{
    struct fixture *fixture = *state;
    struct model *first = add(fixture, "a", 1);
    uint64_t id = first->id;
    registry_remove(&fixture->registry, first);
    assert_null(registry_find(&fixture->registry, "a", &root));
    assert_true(add(fixture, "a", 1)->id > id);
    assert_int_equal(fixture->registry.n_models, 1);
}

static struct model *find(const struct registry *registry, const struct source *source, enum form form,
                          const struct device_set *among, uid_t uid, bool private)
{
    return registry_find_source(
        registry, &(struct registry_query){
                      .source = source, .forms = forms_plain(form), .among = among, .uid = uid, .private = private});
}

/* Whatever words were asked for: what comes to the same for each tensor is the same. */
static void which_outcome(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *model = add(fixture, "a", 1);
    struct header_tensor tensors[] = {{.name = "a", .type = tensor_type_find(1), .n_dims = 2},
                                      {.name = "b", .type = tensor_type_find(0), .n_dims = 1}};
    struct model_header header = {.n_tensors = 2, .tensors = tensors};
    const struct device_set gpu = {.devices = {&fixture->gpu}, .n = 1};
    size_t tensor;
    model->forms = forms_plain(FORM_AUTO);
    static const struct {
        enum form form;
        bool same;
    } cases[] = {{FORM_AUTO, true}, {FORM_NATIVE, true}, {FORM_F16, true}, {FORM_F32, false}, {FORM_BF16, false}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct plan *plan;
        assert_int_equal(plan_new(&header, forms_plain(cases[i].form), PLAN_ALIGNMENT, &plan, &tensor), 0);
        struct registry_query query = {.source = model->source, .forms = forms_plain(cases[i].form), .among = &gpu};
        const bool same_words = cases[i].form == FORM_AUTO;
        assert_ptr_equal(registry_find_source(registry, &query), same_words ? model : NULL);
        assert_ptr_equal(registry_find_other(registry, &query, false), same_words ? NULL : model);
        assert_ptr_equal(registry_find_other(registry, &query, true), same_words ? NULL : model);
        query.plan = plan;
        assert_ptr_equal(registry_find_source(registry, &query), same_words ? model : NULL); /* it has none yet */
        assert_int_equal(plan_new(&header, model->forms, PLAN_ALIGNMENT, &model->plan, &tensor), 0);
        assert_ptr_equal(registry_find_source(registry, &query), cases[i].same ? model : NULL);
        assert_null(registry_find_other(registry, &query, true));
        plan_free(model->plan);
        model->plan = NULL;
        plan_free(plan);
    }
}

static void which_source(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *model = add(fixture, "a", 1);
    model->forms = forms_plain(FORM_F16);
    model->uid = 7;
    const struct device_set both = {.devices = {&fixture->host, &fixture->gpu}, .n = 2};
    const struct device_set other = {.devices = {&fixture->host}, .n = 1};
    const uid_t owner = 7, stranger = 8;
    struct model *own;
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, stranger, false), model);
    assert_null(find(registry, model->source, FORM_F16, &other, stranger, false));
    assert_null(find(registry, model->source, FORM_F32, &both, stranger, false));
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, owner, true), model); /* becomes private */
    assert_null(find(registry, model->source, FORM_F16, &both, stranger, true));
    assert_null(find(registry, add(fixture, "b", 2)->source, FORM_F16, &both, stranger, false));
    model->access = ACCESS_PRIVATE;
    assert_null(find(registry, model->source, FORM_F16, &both, stranger, false));
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, owner, false), model);
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, owner, true), model);
    assert_null(find(registry, model->source, FORM_F16, &both, stranger, true));
    model->access = ACCESS_READERS;
    own = add(fixture, "c", 1);
    own->forms = forms_plain(FORM_F16);
    own->uid = stranger;
    own->access = ACCESS_PRIVATE;
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, stranger, false), own); /* rather than the older */
    assert_ptr_equal(find(registry, model->source, FORM_F16, &both, owner, false), model);
    registry_remove(registry, own);
    for (enum model_state s = 0; s < MODEL_STATE_COUNT; s++) {
        model->state = s;
        bool counts = s != MODEL_DRAINING && s != MODEL_FAILED;
        assert_ptr_equal(find(registry, model->source, FORM_F16, &both, stranger, false), counts ? model : NULL);
    }
}

static void ledger(void **state)
{
    struct fixture *fixture = *state;
    struct device *gpu = &fixture->gpu;
    struct model *a = add(fixture, "a", 1), *b = add(fixture, "b", 2);
    registry_reserve(a, 60);
    assert_int_equal(device_available(gpu), 40);
    registry_reserve(b, 40);
    assert_int_equal(device_available(gpu), 0);
    registry_unreserve(a);
    registry_unreserve(a); /* nothing more to give back */
    assert_int_equal(device_available(gpu), 60);
    gpu->queued = 50; /* is promised to those who wait */
    assert_int_equal(device_available(gpu), 10);
    gpu->queued = UINT64_MAX; /* and no sum wraps */
    assert_int_equal(device_available(gpu), 0);
    gpu->queued = 0;
    gpu->reach = 70; /* the driver has less than the budget */
    assert_int_equal(device_available(gpu), 30);
    gpu->reach = 1000; /* or more */
    assert_int_equal(device_available(gpu), 60);
    gpu->budget = 30; /* less than is used */
    assert_int_equal(device_available(gpu), 0);
    gpu->budget = 100;
    gpu->failed = true;
    assert_int_equal(device_available(gpu), 0);
}

static void what_others_have(void **state)
{
    struct fixture *fixture = *state;
    struct device *gpu = &fixture->gpu;
    gpu->total = 120;
    assert_int_equal(device_others(gpu), 0); /* it was never asked */
    gpu->reach = 100;
    assert_int_equal(device_others(gpu), 20);
    gpu->reach = 130; /* the answer lags behind */
    assert_int_equal(device_others(gpu), 0);
}

/* The first mebibyte is free, however it comes together; the rest is the host's until the model goes. */
static void charges(void **state)
{
    struct fixture *fixture = *state;
    struct device *host = &fixture->host;
    struct model *model = add(fixture, "a", 1);
    registry_charge(model, host, MIB - 1);
    assert_int_equal(host->used, 0);
    registry_charge(model, host, 1);
    assert_int_equal(host->used, 0);
    assert_int_equal(registry_due(model, 5), 5);
    assert_int_equal(registry_due(NULL, MIB + 5), 5);
    assert_int_equal(registry_due(NULL, MIB), 0);
    registry_charge(model, host, 5);
    registry_charge(model, host, 6 * MIB);
    assert_int_equal(host->used, 6 * MIB + 5);
    assert_int_equal(atomic_load(&host->taken), host->used); /* it is no other process's */
    registry_remove(&fixture->registry, model);
    assert_int_equal(host->used, 0);
    assert_int_equal(atomic_load(&host->taken), 0);
}

/* A model that is everybody's, unless its user keeps it. */
static struct model *add_of(struct fixture *fixture, const char *name, uid_t uid, enum access access)
{
    struct model *model = add_by(fixture, name, 1, uid);
    model->access = access;
    return model;
}

static void names_are_looked_up_for_somebody(void **state)
{
    struct fixture *fixture = *state;
    const struct registry *registry = &fixture->registry;
    const struct peer user = {.uid = 1001}, other = {.uid = 1002}, third = {.uid = 1003};
    struct model *mine = add_of(fixture, "a", user.uid, ACCESS_PRIVATE);
    assert_ptr_equal(registry_find(registry, "a", &user), mine);
    assert_null(registry_find(registry, "a", &other));
    assert_null(registry_find(registry, "b", &user));
    assert_ptr_equal(registry_find(registry, "a", &root), mine);
    assert_null(registry_name_owner(registry, "a", &root)); /* what is seen by trust alone keeps no name */
    assert_ptr_equal(registry_name_owner(registry, "a", &user), mine);

    struct model *theirs = add_of(fixture, "a", other.uid, ACCESS_PUBLIC);
    assert_ptr_equal(registry_find(registry, "a", &user), mine);
    assert_ptr_equal(registry_find(registry, "a", &other), theirs);
    assert_ptr_equal(registry_find(registry, "a", &third), theirs);
    assert_ptr_equal(registry_find(registry, "a", &root), theirs); /* may be read, not only be seen */
    assert_ptr_equal(registry_name_owner(registry, "a", &root), theirs);

    char full[MODEL_NAME_SIZE];
    snprintf(full, sizeof(full), "a#%llu", (unsigned long long)mine->id);
    assert_ptr_equal(registry_find(registry, full, &root), mine);
    assert_ptr_equal(registry_find(registry, full, &user), mine);
    assert_null(registry_find(registry, full, &other));
    full[0] = 'b';
    assert_null(registry_find(registry, full, &user));

    struct model *older = add_of(fixture, "b", other.uid, ACCESS_PUBLIC),
                 *newer = add_of(fixture, "b", third.uid, ACCESS_PUBLIC);
    assert_ptr_equal(registry_find(registry, "b", &user), older);
    struct model *trusted = add_of(fixture, "b", 0, ACCESS_PUBLIC);
    assert_ptr_equal(registry_find(registry, "b", &user), trusted);
    assert_ptr_equal(registry_find(registry, "b", &third), newer);
}

/* One that takes a name keeps others from it before it has it; then it gets it from whoever had it. */
static void a_name_that_is_taken(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    for (int all = 0; all <= 1; all++) {
        struct model *old = add(fixture, "a", 1);
        assert_int_equal(registry_name(registry, old, "b", 7), 0);
        struct model *new = add_taking(fixture, "a");
        assert_true(model_nameless(new));
        assert_ptr_equal(registry_find(registry, "a", &root), old);
        assert_ptr_equal(registry_name_owner(registry, "a", &root), old);
        assert_int_equal(registry_take_names(registry, old, new, all, 0), 0);
        assert_ptr_equal(registry_find(registry, "a", &root), new);
        assert_ptr_equal(registry_find(registry, "b", &root), all ? new : old);
        assert_string_equal(new->name, "a");
        assert_int_equal(model_nameless(old), all);
        registry_remove(registry, new);
        registry_remove(registry, old);
    }
    struct model *new = add_taking(fixture, "c");
    assert_null(registry_find(registry, "c", &root));
    assert_ptr_equal(registry_name_owner(registry, "c", &root), new);
    assert_int_equal(registry_take_names(registry, NULL, new, true, 0), 0); /* whoever had it is gone */
    assert_ptr_equal(registry_find(registry, "c", &root), new);
}

static void further_names(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *model = add(fixture, "a", 1);
    assert_false(registry_unname(model, "a"));
    assert_int_equal(registry_name(registry, model, "b", 0), 0);
    assert_ptr_equal(registry_find(registry, "b", &root), model);
    assert_true(registry_unname(model, "a"));
    assert_string_equal(model->name, "b");
    assert_null(registry_find(registry, "a", &root));
    assert_false(registry_unname(model, "b"));
    assert_ptr_equal(registry_find(registry, "b", &root), model);
    for (unsigned i = 1; i < MODEL_NAMES_MAX; i++) {
        char name[8];
        snprintf(name, sizeof(name), "n%u", i);
        assert_int_equal(registry_name(registry, model, name, 0), 0);
    }
    assert_int_equal(registry_name(registry, model, "x", 0), -EMLINK);
    assert_int_equal(registry_may_name(model, 0), -EMLINK);
    assert_true(registry_unname(model, "n1"));
    assert_int_equal(registry_may_name(model, 0), 0);
    strcpy(model->takes, "y"); /* counts as one that it has */
    assert_int_equal(registry_may_name(model, 0), -EMLINK);
    model->takes[0] = '\0';
    assert_int_equal(registry_name(registry, model, "n1", 0), 0);
    model_lose_name(model);
    assert_true(model_nameless(model));
    assert_null(registry_find(registry, "n1", &root));
    assert_ptr_equal(registry_find(registry, model->name, &root), model);
    assert_string_equal(model->name, "b#1");
}

/* What one user may give the model of another, and what all others together may. */
static void names_of_others(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *model = add_by(fixture, "a", 1, 1000);
    char name[8];
    for (uid_t uid = 1001; model->n_names < MODEL_NAMES_MAX - MODEL_GIVEN_MAX; uid++) {
        for (unsigned i = 0; i < MODEL_GIVEN_MAX && model->n_names < MODEL_NAMES_MAX - MODEL_GIVEN_MAX; i++) {
            snprintf(name, sizeof(name), "%u-%u", (unsigned)uid, i);
            assert_int_equal(registry_name(registry, model, name, uid), 0);
        }
        if (uid == 1001)
            assert_int_equal(registry_name(registry, model, "x", uid), -EDQUOT);
    }
    assert_int_equal(registry_name(registry, model, "x", 1100), -EMLINK);
    for (unsigned i = 0; i < MODEL_GIVEN_MAX; i++) {
        snprintf(name, sizeof(name), "b%u", i);
        assert_int_equal(registry_name(registry, model, name, i % 2 ? 0 : 1000), 0);
    }
    assert_int_equal(registry_name(registry, model, "x", 1000), -EMLINK);
    assert_int_equal(registry_name(registry, model, "x", 0), -EMLINK);
}

/* A model that has names already gets no more than it may have. What does not fit stays where it was. */
static void no_room_for_all_names(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *old = add(fixture, "a", 1), *new = add(fixture, "z", 2);
    char name[8];
    for (unsigned i = 0; i < MODEL_NAMES_MAX - 2; i++) {
        snprintf(name, sizeof(name), "z%u", i);
        assert_int_equal(registry_name(registry, new, name, 0), 0);
    }
    assert_int_equal(registry_name(registry, old, "b", 7), 0);
    strcpy(new->takes, "b");
    assert_int_equal(registry_take_names(registry, old, new, true, 8), 0);
    assert_ptr_equal(registry_find(registry, "a", &root), old);
    assert_int_equal(model_find_name(new, "b")->uid, 8); /* who took it has given it */
    assert_int_equal(new->n_names, MODEL_NAMES_MAX);
    assert_string_equal(old->name, "a");
}

/* The names that follow keep their users; but nobody passes on a name that a trusted user gave. */
static void whose_names_follow(void **state)
{
    struct fixture *fixture = *state;
    struct registry *registry = &fixture->registry;
    struct model *old = add_by(fixture, "a", 1, 7), *new = add_named(fixture, "a", "a", 1, 7);
    assert_int_equal(registry_name(registry, old, "b", 8), 0);
    assert_int_equal(registry_name(registry, old, "c", 0), 0);
    assert_int_equal(registry_take_names(registry, old, new, true, 7), 0);
    assert_int_equal(model_find_name(new, "b")->uid, 8);
    assert_int_equal(model_find_name(new, "c")->uid, 7);
    assert_true(model_nameless(old));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(ids_are_never_used_twice, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(which_source, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(which_outcome, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(names_are_looked_up_for_somebody, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(further_names, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(a_name_that_is_taken, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(names_of_others, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(no_room_for_all_names, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(whose_names_follow, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(ledger, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(what_others_have, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(charges, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
