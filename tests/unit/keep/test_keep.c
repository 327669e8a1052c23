/* daemon/keep/keep.h: the store has what a model is now, and models that did not change cost nothing. */
#include "daemon/keep/description.h"
#include "daemon/keep/keep.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define MANY      800u
#define TURNS     200
#define TURN_NS   20000u /* a walk over MANY models took 100,000 */
#define OTHER_UID 12345u

static const struct peer guest = {.uid = OTHER_UID};

struct fixture {
    uv_loop_t loop;
    struct core core;
    struct registry registry;
    struct residency residency;
    struct device device;
    struct keep *keep;
    char folder[64];
    int store;  /* the service manager's socket */
    int memory; /* the arena of all models */
};

static int fixture_make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    assert_non_null(fixture);
    strcpy(fixture->folder, "/tmp/test_keep.XXXXXX");
    assert_non_null(mkdtemp(fixture->folder));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/notify", fixture->folder);
    fixture->store = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(fixture->store, (const struct sockaddr *)&address, sizeof(address)), 0);
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    fixture->memory = memfd_create("test", MFD_CLOEXEC);
    assert_true(fixture->memory >= 0);
    assert_int_equal(uv_loop_init(&fixture->loop), 0);
    assert_int_equal(core_init(&fixture->core, &fixture->loop), 0);
    assert_int_equal(workers_begin(fixture->core.queue, 1), 0);
    registry_init(&fixture->registry, NULL);
    fixture->residency = (struct residency){.core = &fixture->core, .registry = &fixture->registry};
    fixture->device = (struct device){.id = "host", .kind = "host", .granule = 4096};
    assert_int_equal(keep_new(&fixture->residency, 30, &fixture->keep), 0);
    *state = fixture;
    return 0;
}

static int fixture_free(void **state)
{
    struct fixture *fixture = *state;
    struct model *model;
    keep_stop(fixture->keep);
    while ((model = TAILQ_FIRST(&fixture->registry.models)))
        registry_remove(&fixture->registry, model);
    keep_close(fixture->keep);
    core_close(&fixture->core);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    const int left = uv_loop_close(&fixture->loop) < 0;
    char path[128];
    snprintf(path, sizeof(path), "%s/notify", fixture->folder);
    unlink(path);
    rmdir(fixture->folder);
    unsetenv("NOTIFY_SOCKET");
    close(fixture->store);
    close(fixture->memory);
    free(fixture);
    return left;
}

/* A published model: it has no files, and one header. */
static struct model *add(struct fixture *fixture, const char *name)
{
    struct model *model = calloc(1, sizeof(*model));
    assert_non_null(model);
    strcpy(model->name, name);
    model->state = MODEL_SEALING;
    model->ttl = -1;
    model->access = ACCESS_READERS;
    model->device = &fixture->device;
    model->forms = forms_plain(FORM_AUTO);
    model->header = calloc(1, sizeof(*model->header));
    model->plan = calloc(1, sizeof(*model->plan));
    model->published = PUBLICATION_NONE;
    model->published.header_fd = fcntl(fixture->memory, F_DUPFD_CLOEXEC, 0);
    assert_true(model->published.header_fd >= 0);
    assert_true(model->forms && model->header && model->plan && source_none(&model->source) == 0);
    model->plan->arena_bytes = 4096;
    model->export.fd = fixture->memory;
    LIST_INIT(&model->leases);
    assert_int_equal(registry_add(&fixture->registry, model), 0);
    model_move(model, MODEL_RESIDENT);
    return model;
}

static void turn(struct fixture *fixture)
{
    uv_run(&fixture->loop, UV_RUN_NOWAIT);
}

/* How many messages the service manager got that have this text, and how many others. */
static unsigned told(struct fixture *fixture, const char *text, unsigned *ret_others)
{
    unsigned n = 0;
    char message[512];
    ssize_t size;
    *ret_others = 0;
    while ((size = recv(fixture->store, message, sizeof(message) - 1, 0)) >= 0) {
        message[size] = '\0';
        if (strstr(message, text))
            n++;
        else
            ++*ret_others;
    }
    return n;
}

static void described_once(struct fixture *fixture, const char *what)
{
    unsigned others;
    turn(fixture);
    if (told(fixture, "FDSTORE=1", &others) != 1 || others != 1) /* the description before this one goes */
        fail_msg("%s: the model was not described again", what);
    turn(fixture);
    if (told(fixture, "FDSTORE=1", &others) != 0 || others != 0)
        fail_msg("%s: the model was described though it had not changed again", what);
}

static void each_change_is_described_once(void **state)
{
    struct fixture *fixture = *state;
    unsigned others;
    struct model *model = add(fixture, "a"), *from = add(fixture, "b");
    turn(fixture);
    (void)told(fixture, "", &others);
    turn(fixture);
    assert_int_equal(told(fixture, "", &others), 0);
    model_set_pinned(model, true);
    described_once(fixture, "pinned");
    model_set_ttl(model, 7);
    described_once(fixture, "ttl");
    model_set_changed(model, true);
    described_once(fixture, "changed");
    model_set_origin(model, strdup("/another"));
    described_once(fixture, "origin");
    assert_int_equal(model_admit(model, &guest), 0);
    described_once(fixture, "a guest");
    assert_int_equal(registry_name(&fixture->registry, model, "c", OTHER_UID), 0);
    described_once(fixture, "a name");
    struct access_entry *entries;
    struct access_facts *facts;
    assert_int_equal(access_facts_new(1, 0, &facts, &entries), 0);
    entries[0] = (struct access_entry){.owner = 1, .mode = 0600};
    model_set_facts(model, facts);
    described_once(fixture, "facts");
    model_widen(model);
    described_once(fixture, "public");
    model_narrow(model);
    described_once(fixture, "private");
    assert_int_equal(registry_name(&fixture->registry, model, "d", 0), 0);
    described_once(fixture, "another name");
    assert_true(registry_unname(model, "d"));
    described_once(fixture, "a name less");
    strcpy(model->takes, "b");
    assert_int_equal(registry_take_names(&fixture->registry, from, model, false, 0), 0);
    turn(fixture);
    assert_int_equal(told(fixture, "FDSTORE=1", &others), 1);
    assert_true(others >= 3); /* the other model has no name left: all of it goes */
    assert_null(from->stored);
    model_mark_dirty(model);
    turn(fixture);
    assert_int_equal(told(fixture, "", &others), 0); /* its description would say the same */
}

static void what_is_not_resident_leaves_the_store(void **state)
{
    struct fixture *fixture = *state;
    unsigned others;
    struct model *model = add(fixture, "a");
    turn(fixture);
    assert_int_equal(told(fixture, "FDSTORE=1", &others), 3);
    model_move(model, MODEL_DRAINING);
    turn(fixture);
    assert_int_equal(told(fixture, "FDSTOREREMOVE=1", &others), 3);
    assert_int_equal(others, 0);
    assert_null(model->stored);
}

/* A model that changes between two turns and goes is not looked at any more. */
static void a_model_goes_while_it_is_dirty(void **state)
{
    struct fixture *fixture = *state;
    unsigned others;
    struct model *model = add(fixture, "a");
    registry_remove(&fixture->registry, model);
    turn(fixture);
    assert_int_equal(told(fixture, "", &others), 0);
    assert_null(registry_take_dirty(&fixture->registry));
}

/* The shortest of many turns: other processes make single ones longer. */
static void a_turn_does_not_walk_all_models(void **state)
{
    struct fixture *fixture = *state;
    unsigned others;
    char name[16];
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur < 2 * MANY)
        skip();
    for (unsigned i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "m%u", i);
        add(fixture, name);
        turn(fixture);
        assert_int_equal(told(fixture, "FDSTORE=1", &others), 3);
    }
    uint64_t shortest = UINT64_MAX;
    for (int i = 0; i < TURNS; i++) {
        const uint64_t begin = uv_hrtime();
        turn(fixture);
        const uint64_t took = uv_hrtime() - begin;
        shortest = took < shortest ? took : shortest;
    }
    print_message("a turn with %u models that did not change: %.1f us\n", MANY, (double)shortest / 1e3);
    assert_true(shortest < TURN_NS);
    assert_int_equal(told(fixture, "", &others), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_change_is_described_once, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(what_is_not_resident_leaves_the_store, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(a_model_goes_while_it_is_dirty, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(a_turn_does_not_walk_all_models, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
