/* daemon/memory/residency.c: what the timer does, where others change the list of models meanwhile; and how evictions
 * are told. */
#include "daemon/memory/residency.h"
#include "daemon/session/events.h"

#include <errno.h>
#include <pthread.h>
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
    struct devices devices; /* none */
    struct model *dropped;  /* by freed(); NULL: none */
    unsigned n_freed;
    struct claim claim;
    bool granted;
};

#define EVICTIONS 6u

/* What was told of evicted models, in order. */
static struct {
    uint64_t waste; /* nanoseconds that it takes to tell one; 0: evictions are not looked at */
    size_t n_evicted, n_unloaded;
    uint64_t evicted[EVICTIONS];
} told;

void __real_events_emit(struct events *events, const char *event, const struct model *model, const char *error);
void __wrap_events_emit(struct events *events, const char *event, const struct model *model, const char *error);

/* Tells slowly, as if very many watched. */
void __wrap_events_emit(struct events *events, const char *event, const struct model *model, const char *error)
{
    const uint64_t began = uv_hrtime();
    while (uv_hrtime() - began < told.waste)
        ;
    if (strcmp(event, "evicted") == 0) {
        assert_in_range(told.n_evicted, 0, EVICTIONS - 1);
        told.evicted[told.n_evicted++] = model->id;
    } else if (told.waste > 0 && strcmp(event, "unloaded") == 0) {
        bool was_told = false;
        for (size_t i = 0; i < told.n_evicted; i++)
            was_told |= told.evicted[i] == model->id;
        assert_true(was_told);
        told.n_unloaded++;
    }
    __real_events_emit(events, event, model, error);
}

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device;
    (void)ret;
    return device_fault_set(ret_fault, -EIO, "hipMemGetInfo", 1, "it does not tell");
}

/* Memory that is being freed waits for this. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void arena_free(struct arena *arena)
{
    (void)arena;
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
}

static const struct device_ops gpu_ops = {.memory_free = memory_free, .arena_free = arena_free};

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
        .devices = &fixture->devices,
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

static void granted(struct claim *claim)
{
    ((struct fixture *)((char *)claim - offsetof(struct fixture, claim)))->granted = true;
}

/* Models that fill the device, and a load that needs the memory of all of them. */
static void evict_all(struct fixture *fixture)
{
    told.n_evicted = told.n_unloaded = 0;
    told.waste = 3000000;
    fixture->gpu = (struct device){.ops = &gpu_ops, .kind = "hip", .budget = EVICTIONS * COPY_BYTES};
    fixture->claim.granted = granted;
    for (size_t i = 0; i < EVICTIONS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "m%zu", i);
        struct model *model = add(fixture, name, MODEL_RESIDENT);
        model->arena = (struct arena *)model; /* no more than a value */
        model->idle_since = model->id;
        registry_reserve(model, COPY_BYTES);
    }
    const unsigned n = residency_make_room(&fixture->residency, &fixture->claim, &fixture->gpu, fixture->gpu.budget);
    assert_int_equal(n, EVICTIONS);
    assert_int_equal(fixture->claim.n_victims, EVICTIONS);
    assert_int_equal(fixture->gpu.used, 0); /* at once: the memory is the claim's */
}

/* Each model that is told takes long: others have their turns between, and the memory is not given away before. */
static void evictions_are_told_in_turns(void **state)
{
    struct fixture *fixture = *state;
    pthread_mutex_lock(&gate);
    evict_all(fixture);
    for (size_t n = 0; n < EVICTIONS; n++) {
        assert_int_equal(told.n_evicted, n);
        uv_run(&fixture->loop, UV_RUN_ONCE);
    }
    assert_int_equal(told.n_evicted, EVICTIONS);
    assert_false(fixture->granted);
    pthread_mutex_unlock(&gate);
    while (!fixture->granted)
        uv_run(&fixture->loop, UV_RUN_ONCE);
    assert_int_equal(told.n_unloaded, EVICTIONS);
    assert_true(TAILQ_EMPTY(&fixture->registry.models));
    for (size_t i = 1; i < EVICTIONS; i++)
        assert_true(told.evicted[i - 1] < told.evicted[i]); /* in the order in which they were used */
}

/* The memory is free before all were told: each is told of before it is gone, once. */
static void evictions_end_before_they_are_told(void **state)
{
    struct fixture *fixture = *state;
    evict_all(fixture);
    while (!fixture->granted) {
        const size_t n = told.n_evicted, m = told.n_unloaded;
        uv_run(&fixture->loop, UV_RUN_ONCE);
        assert_in_range(told.n_evicted - n, 0, 2); /* one by itself, and one whose end is told */
        assert_in_range(told.n_unloaded - m, 0, 1);
    }
    assert_int_equal(told.n_evicted, EVICTIONS);
    assert_int_equal(told.n_unloaded, EVICTIONS);
    assert_true(TAILQ_EMPTY(&fixture->registry.models));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_next_model_goes_meanwhile, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(the_model_itself_goes_meanwhile, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(evictions_are_told_in_turns, fixture_make, fixture_free),
        cmocka_unit_test_setup_teardown(evictions_end_before_they_are_told, fixture_make, fixture_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
