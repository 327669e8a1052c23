#include "daemon/server.h"

#include "daemon/api/methods.h"
#include "daemon/base/closer.h"
#include "daemon/base/log.h"
#include "daemon/options.h"
#include "daemon/session/session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How often progress is reported: often enough for a progress bar. */
#define TICK_MS 200u

/* The daemon that ends waits so long for files that do not answer. */
#define STOP_PATIENCE_NS 5000000000u

static const struct conn_hooks conn_hooks = {
    .dispatch = methods_dispatch,
    .holds = methods_hold,
    .opened = session_opened,
    .closed = session_closed,
    .replying = session_replying,
    .replied = session_replied,
};

static struct server *server_of(struct core *core)
{
    return (struct server *)((char *)core - offsetof(struct server, core));
}

static bool some_device_hangs(const struct server *server)
{
    for (size_t i = 0; i < server->devices.n; i++)
        if (atomic_load(&server->devices.devices[i]->hung))
            return true;
    return false;
}

/* Devices whose drivers do not return from a call are lost; others go on. */
static void look_at_devices(struct server *server)
{
    const uint64_t now = uv_hrtime(), patience = server->device_patience;
    for (size_t i = 0; i < server->devices.n && now > patience; i++) {
        struct device *device = server->devices.devices[i];
        if (device_is_host(device) || atomic_load(&device->hung) ||
            (!device_hangs(device, now - patience) && !loads_hang(&server->loads, device, now - patience)))
            continue;
        atomic_store(&device->hung, true);
        log_error("device=%s its driver has not answered for %.0f s", device->id, (double)patience / 1e9);
        residency_lose_device(&server->residency, device);
        loads_lose_device(&server->loads, device);
        verifies_lose_device(&server->verifies, device);
    }
    /* It may have begun later than the call that hangs. */
    if (now > patience && some_device_hangs(server) && survey_hangs(server->survey, now - patience))
        survey_give_up(server->survey);
}

static void ticked(uv_timer_t *timer)
{
    struct server *server = timer->data;
    look_at_devices(server);
    loads_report(&server->loads);
    verifies_report(&server->verifies);
}

static void server_stop_more(struct server *server);

/* The first job began, or the last one ended. */
static void busy(struct core *core, bool busy)
{
    struct server *server = server_of(core);
    if (busy && !core->stopping)
        uv_timer_start(&server->ticker, ticked, TICK_MS, TICK_MS);
    else if (!busy && core->stopping)
        server_stop_more(server);
    else if (!busy)
        uv_timer_stop(&server->ticker);
}

static void freed(void *context)
{
    loads_retry(context);
}

/* Jobs begin to wait for files that do not answer, or go on. */
static void held_up(void *context)
{
    struct server *server = context;
    loads_held_up(&server->loads);
    verifies_held_up(&server->verifies);
    conns_go_on(server->conns);
}

static void some_closed(void *context)
{
    struct server *server = context;
    conns_go_on(server->conns);
}

/* Gives each part pointers to the others that it works on. */
static void server_wire(struct server *server, const struct server_config *config)
{
    server->residency = (struct residency){
        .core = &server->core,
        .devices = &server->devices,
        .registry = &server->registry,
        .events = server->events,
        .cache = {.size = config->host_cache, .lock_memory = config->lock_memory},
        .spared = {.keep_ns = config->keep_freed * (uint64_t)1000000000},
        .freed = freed,
        .context = &server->loads,
    };
    server->loads = (struct loads){
        .core = &server->core,
        .devices = &server->devices,
        .registry = &server->registry,
        .residency = &server->residency,
        .events = server->events,
        .quota = server->quota,
        .verifies = &server->verifies,
        .direct = server->direct,
        .page_cache = config->page_cache,
    };
    server->rechecks = (struct rechecks){
        .core = &server->core,
        .registry = &server->registry,
        .events = server->events,
    };
    server->verifies = (struct verifies){
        .core = &server->core,
        .residency = &server->residency,
        .quota = server->quota,
    };
    server->api = (struct api){
        .core = &server->core,
        .devices = &server->devices,
        .registry = &server->registry,
        .residency = &server->residency,
        .survey = server->survey,
        .loads = &server->loads,
        .verifies = &server->verifies,
        .rechecks = &server->rechecks,
        .events = server->events,
        .quota = server->quota,
        .conns = server->conns,
        .started = uv_hrtime(),
    };
    workers_watch(server->core.queue, held_up, server);
    server->registry.lease_ended = residency_lease_ended;
    server->registry.model_failed = residency_model_failed;
    server->registry.context = &server->residency;
    server->device_patience =
        (config->device_timeout ? config->device_timeout : DEVICE_TIMEOUT_DEFAULT) * 1000000000ull;
    workers_set_device_patience(server->core.queue, server->device_patience);
    server->core.workers = config->workers;
    server->core.has_processor = config->has_processor;
    server->core.busy = busy;
    server->ticker.data = server;
}

/* Daemons do without it. */
static void direct_begin(struct server *server, const struct server_config *config)
{
    if (config->page_cache == PAGE_CACHE_KEEP)
        return;
    int r = direct_new(&server->direct);
    if (r < 0)
        log_info("files that are not in the page cache are read through it: no io_uring: %s", strerror(-r));
}

int server_init(struct server *server, uv_loop_t *loop, const struct server_config *config)
{
    *server = (struct server){0};
    int r = core_init(&server->core, loop);
    if (r == 0)
        r = uv_timer_init(loop, &server->ticker);
    if (r == 0)
        r = quota_new(&config->limits, &server->quota);
    if (r == 0)
        r = events_new(&server->events);
    if (r == 0)
        r = survey_new(&server->core, &server->devices, &server->survey);
    if (r == 0)
        r = conns_new(loop, &conn_hooks, &server->api, server->quota, &server->core.counters, &server->conns);
    if (r == 0)
        r = closer_new(&server->core, server->quota, &server->core.closer);
    if (r < 0)
        return r;
    closer_watch(server->core.closer, some_closed, server);
    conns_set_closer(server->conns, server->core.closer);
    direct_begin(server, config);
    registry_init(&server->registry, server->quota);
    server_wire(server, config);
    loads_init(&server->loads);
    verifies_init(&server->verifies);
    rechecks_init(&server->rechecks);
    return residency_init(&server->residency);
}

/* --- stopping --- */

/* Goes on as far as it can. Called again whenever the last job is over. */
static void server_stop_more(struct server *server)
{
    if (!server->conns_closed || server->core.n_jobs > 0)
        return;
    struct model *model;
    while ((model = TAILQ_FIRST(&server->registry.models))) {
        residency_unload(&server->residency, model, NULL);
        if (server->core.n_jobs > 0)
            return; /* this function is called again when it is over */
        if (model == TAILQ_FIRST(&server->registry.models)) {
            log_error("model=%s cannot be unloaded: no memory", model->name);
            _exit(EXIT_FAILURE);
        }
    }
    server->threads_hang = some_device_hangs(server);
    survey_free(server->survey);
    host_cache_unpin(&server->residency.cache);
    devices_close(&server->devices);
    uv_close((uv_handle_t *)&server->ticker, NULL);
    residency_close(&server->residency);
    events_free(server->events);
    closer_free(server->core.closer);
    quota_free(server->quota);
    direct_free(server->direct);
    core_close(&server->core);
    server->stopped(server);
}

/* Threads wait in system calls that cannot be interrupted. Until these return, the kernel frees nothing that this
 * process has. So the models are given up first. */
static void give_up(struct server *server)
{
    log_error("%u files, or a device, do not answer: the daemon ends without waiting for them",
              workers_hanging(server->core.queue));
    struct model *model;
    TAILQ_FOREACH(model, &server->registry.models, link)
    {
        if (model->arena && !model->load && !model_in_use(model) && device_is_host(model->device))
            device_arena_free(model->device, model->arena, model->plan->arena_bytes);
    }
    _exit(EXIT_FAILURE);
}

/* Called while the daemon ends: whether it has waited long enough for what hangs. */
static void stop_look(uv_timer_t *timer)
{
    struct server *server = timer->data;
    const uint64_t now = uv_hrtime();
    look_at_devices(server);
    if (server->core.steps != server->stop_steps ||
        !(workers_are_stuck(server->core.queue) || some_device_hangs(server))) {
        server->stop_steps = server->core.steps;
        server->stuck_since = now;
    } else if (now - server->stuck_since > STOP_PATIENCE_NS)
        give_up(server);
}

static void server_conns_closed(void *context)
{
    struct server *server = context;
    server->conns_closed = true;
    server->conns = server->api.conns = NULL;
    server_stop_more(server);
}

void server_stop(struct server *server, void (*done)(struct server *server))
{
    if (server->core.stopping)
        return;
    server->core.stopping = true;
    server->stopped = done;
    uv_timer_stop(&server->residency.reaper);
    server->stuck_since = uv_hrtime();
    server->stop_steps = server->core.steps;
    uv_timer_start(&server->ticker, stop_look, TICK_MS, TICK_MS);
    loads_end(&server->loads, WIRE_ShuttingDown);
    verifies_end(&server->verifies, WIRE_ShuttingDown);
    events_end(server->events);
    conns_close(server->conns, server_conns_closed, server);
}
