/* daemon/memory/residency.c: what the timer does, where others change the list of models meanwhile. */
#include "daemon/memory/residency.h"
#include "daemon/session/events.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* clang-format off */
#include <cmocka.h> /* wants the standard headers before it */
/* clang-format on */

#define COPY_BYTES ((uint64_t)1 << 20)

struct fixture {
    uv_loop_t loop;
    struct core core;
    struct events *events;
    struct registry registry;
    struct residency residency;
    struct device gpu;
    struct model *dropped; /* by freed(); NULL: none */
    unsigned n_freed;
};

static struct model *add(struct fixture *fixture, const char *name, enum model_state state)
{
    struct model *model = calloc(1, sizeof(*model));
    assert_non_null(model);
    strcpy(model->name, name);
    model->state = state;
    model->ttl = -1;
    model->device = &fixture->gpu;
    model->forms = forms_plain(FORM_AUTO);
    model->source = calloc(1, sizeof(*model->source) + sizeof(model->source->files[0]));
    model->plan = calloc(1, sizeof(*model->plan));
    assert_true(model->forms && model->source && model->plan);
    model->source->references = model->source->n_files = 1;
    model->source->files[0].fd = -1;
    model->plan->arena_bytes = COPY_BYTES;
    model->published = PUBLICATION_NONE;
    LIST_INIT(&model->leases);
    assert_int_equal(registry_add(&fixture->registry, model), 0);
    return model;
}

/* What a load that waited does: it takes memory for which a cached model has to go. */
static void freed(void *context)
{
    struct fixture *fixture = context;
    fixture->n_freed++;
    if (fixture->dropped)
        host_cache_forget(&fixture->residency.cache, fixture->dropped);
    fixture->dropped = NULL;
}

static int fixture_make(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    if (!fixture || uv_loop_init(&fixture->loop) < 0 || core_init(&fixture->core, &fixture->loop) < 0 ||
        workers_begin(fixture->core.queue, 2) < 0 || events_new(&fixture->events) < 0)
        return -1;
    registry_init(&fixture->registry, NULL);
    fixture->residency = (struct residency){
        .core = &fixture->core,
        .registry = &fixture->registry,
        .events = fixture->events,
        .freed = freed,
        .context = fixture,
    };
    *state = fixture;
    return residency_init(&fixture->residency);
}

static int fixture_free(void **state)
{
    struct fixture *fixture = *state;
    struct model *model;
    while ((model = TAILQ_FIRST(&fixture->registry.models)))
        registry_remove(&fixture->registry, model);
    residency_close(&fixture->residency);
    while (fixture->core.n_jobs > 0)
        uv_run(&fixture->loop, UV_RUN_ONCE);
    events_end(fixture->events);
    events_free(fixture->events);
    core_close(&fixture->core);
    uv_run(&fixture->loop, UV_RUN_DEFAULT);
    int left = uv_loop_close(&fixture->loop) < 0 || fixture->residency.cache.used != 0;
    free(fixture);
    return left;
}

static struct model *add_cached(struct fixture *fixture)
{
    struct model *model = add(fixture, "cached", MODEL_CACHED);
    model->cache = mmap(NULL, COPY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(model->cache, MAP_FAILED);
    fixture->residency.cache.used += COPY_BYTES;
    return model;
}

/* A draining model loses its name, and the load that this wakes drops the model behind it in the list. */
static void the_next_model_goes_meanwhile(void **state)
{
    struct fixture *fixture = *state;
    struct model *draining = add(fixture, "draining", MODEL_RESIDENT);
    fixture->dropped = add_cached(fixture);
    struct model *last = add(fixture, "last", MODEL_RESIDENT);
    model_hold(draining);
    residency_drain(&fixture->residency, draining, 0.001);
    while (fixture->n_freed == 0)
        uv_run(&fixture->loop, UV_RUN_ONCE);
    assert_true(model_nameless(draining));
    assert_ptr_equal(TAILQ_NEXT(draining, link), last);
    model_unhold(draining);
}

/* A cached model is not used any more, and the load that this wakes drops the model itself. */
static void the_model_itself_goes_meanwhile(void **state)
{
    struct fixture *fixture = *state;
    fixture->dropped = add_cached(fixture);
    residency_idle(&fixture->residency, fixture->dropped);
    assert_int_equal(fixture->n_freed, 1);
    assert_true(TAILQ_EMPTY(&fixture->registry.models));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_next_model_goes_meanwhile, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(the_model_itself_goes_meanwhile, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
