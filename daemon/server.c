#include "daemon/server.h"

#include "daemon/session/describe.h"
#include "daemon/load/load.h"
#include "daemon/base/log.h"
#include "daemon/api/methods.h"
#include "daemon/memory/residency.h"
#include "daemon/api/verify.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How often those who wait are told how far it is: a bar that moves smoothly, and no more. */
#define TICK_MS 200u

/* How long the loop looks for news without sleeping. It takes 50 us and more to wake a thread, on a processor that had
 * nothing to do; and three such steps are one behind the other before a load's first copy. They take less than this. */
#define VIGIL_NS 2000000u

static void lease_was_ended(struct registry *registry, struct model *model)
{
    struct server *server = (struct server *)((char *)registry - offsetof(struct server, registry));
    events_emit(server->events, "detached", model, NULL);
    residency_idle(server, model);
}

static bool admit(void *context, uid_t uid, uint64_t *ret_limit)
{
    return user_may(context, uid, LIMIT_CONNECTIONS, 1, ret_limit);
}

int server_init(struct server *server, uv_loop_t *loop)
{
    *server = (struct server){.loop = loop, .started = uv_hrtime()};
    registry_init(&server->registry);
    server->registry.lease_ended = lease_was_ended;
    TAILQ_INIT(&server->loads);
    TAILQ_INIT(&server->verifies);
    LIST_INIT(&server->plannings);
    server->limits = (struct user_limits){USER_CONNECTIONS, USER_LOADS, USER_LEASES, USER_BYTES};
    int r = uv_timer_init(loop, &server->ticker);
    if (r == 0)
        r = uv_timer_init(loop, &server->reaper);
    if (r == 0)
        r = uv_idle_init(loop, &server->vigil);
    if (r == 0)
        r = mailbox_new(loop, &server->mailbox);
    if (r == 0)
        r = events_new(&server->events);
    if (r == 0)
        r = conns_new(loop, methods_dispatch, admit, server, &server->conns);
    server->ticker.data = server->reaper.data = server->vigil.data = server;
    return r;
}

int server_add_device(struct server *server, struct device *device, struct device_fault *ret_fault)
{
    if (server->n_devices == DEVICES_MAX)
        return device_fault_set(ret_fault, -ENOSPC, "server_add_device", 0, "too many devices");
    int r = staging_new(device, &device->staging, ret_fault);
    if (r < 0)
        return r;
    r = scheduler_new(device, &server->schedulers[server->n_devices]);
    if (r < 0) {
        staging_free(device->staging);
        device->staging = NULL;
        return device_fault_set(ret_fault, r, "scheduler_new", 0, "no memory");
    }
    server->devices[server->n_devices++] = device;
    device->free = UINT64_MAX;
    return 0;
}

struct device *server_host(const struct server *server)
{
    return server->devices[server->n_devices - 1];
}

struct scheduler *server_scheduler(struct server *server, const struct device *device)
{
    for (size_t i = 0; i < server->n_devices; i++)
        if (server->devices[i] == device)
            return server->schedulers[i];
    assert(!"a device of this server");
    return NULL;
}

void server_device_failed(struct server *server, struct device *device)
{
    if (device->failed)
        return;
    device->failed = true;
    log_error("device=%s is lost", device->id);
    struct model *model;
    TAILQ_FOREACH(model, &server->registry.models, link)
    {
        if (model->device != device || model->state != MODEL_RESIDENT)
            continue;
        model_move(model, MODEL_FAILED);
        events_emit(server->events, "failed", model, "its device is lost");
        residency_idle(server, model);
    }
}

void server_loads_retry(struct server *server)
{
    for (struct load *load = TAILQ_FIRST(&server->loads); load; load = load_next(load))
        load_retry(load);
}

void server_changed(struct server *server)
{
    if (server->changed)
        server->changed(server);
}

/* --- jobs, and their progress --- */

static void ticked(uv_timer_t *timer)
{
    struct server *server = timer->data;
    for (struct load *load = TAILQ_FIRST(&server->loads); load; load = load_next(load))
        load_report(load);
    for (struct verify *verify = TAILQ_FIRST(&server->verifies); verify; verify = verify_next(verify))
        verify_report(verify);
}

/* Called each time that the loop has looked. */
static void vigil_kept(uv_idle_t *vigil)
{
    const struct server *server = vigil->data;
    if (uv_hrtime() >= server->vigil_ends)
        uv_idle_stop(vigil);
}

void server_keep_vigil(struct server *server)
{
    if (!server->has_processor)
        return;
    server->vigil_ends = uv_hrtime() + VIGIL_NS;
    uv_idle_start(&server->vigil, vigil_kept);
}

static void server_stop_more(struct server *server);

void server_job_begin(struct server *server)
{
    if (server->n_jobs++ == 0 && !server->stopping)
        uv_timer_start(&server->ticker, ticked, TICK_MS, TICK_MS);
    server_changed(server);
}

void server_job_end(struct server *server)
{
    assert(server->n_jobs > 0);
    if (--server->n_jobs > 0)
        return;
    if (server->stopping)
        server_stop_more(server);
    else
        uv_timer_stop(&server->ticker);
}

/* --- stopping --- */

static void server_close_devices(struct server *server)
{
    for (size_t i = 0; i < server->n_devices; i++) {
        scheduler_free(server->schedulers[i]);
        staging_free(server->devices[i]->staging);
        server->devices[i]->ops->close(server->devices[i]);
    }
    server->n_devices = 0;
}

/* Goes on with what can be done now; called again whenever a job is over. */
static void server_stop_more(struct server *server)
{
    if (!server->conns_closed || server->n_jobs > 0)
        return;
    struct model *model;
    while ((model = TAILQ_FIRST(&server->registry.models))) {
        residency_unload(server, model, NULL);
        if (server->n_jobs > 0)
            return; /* its end brings us here again */
        if (model == TAILQ_FIRST(&server->registry.models)) {
            log_error("model=%s cannot be unloaded: no memory", model->name);
            _exit(EXIT_FAILURE);
        }
    }
    server_close_devices(server);
    uv_close((uv_handle_t *)&server->ticker, NULL);
    uv_close((uv_handle_t *)&server->reaper, NULL);
    uv_close((uv_handle_t *)&server->vigil, NULL);
    mailbox_close(server->mailbox);
    server->stopped(server);
}

static void server_conns_closed(void *context)
{
    struct server *server = context;
    server->conns_closed = true;
    server->conns = NULL;
    server_stop_more(server);
}

void server_stop(struct server *server, void (*done)(struct server *server))
{
    if (server->stopping)
        return;
    server->stopping = true;
    server->stopped = done;
    uv_timer_stop(&server->ticker);
    uv_timer_stop(&server->reaper);
    struct load *next_load;
    for (struct load *load = TAILQ_FIRST(&server->loads); load; load = next_load) {
        next_load = load_next(load);
        load_end(load, WIRE_ShuttingDown, NULL);
    }
    struct verify *next_verify;
    for (struct verify *verify = TAILQ_FIRST(&server->verifies); verify; verify = next_verify) {
        next_verify = verify_next(verify);
        verify_end(verify, WIRE_ShuttingDown);
    }
    events_free(server->events);
    server->events = NULL;
    conns_close(server->conns, server_conns_closed, server);
}
