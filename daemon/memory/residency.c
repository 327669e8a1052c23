#include "daemon/memory/residency.h"

#include "daemon/base/log.h"
#include "daemon/base/seconds.h"
#include "daemon/base/worker.h"
#include "daemon/memory/admission.h"
#include "daemon/memory/save.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/call.h"
#include "daemon/wire/errors.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* If a client does not end its lease on a draining model within this time, the journal names the client. */
#define DRAIN_NOTICE_NS ((uint64_t)30 * 1000000000u)

static void reap(uv_timer_t *timer);

/* --- unloading --- */

/* A model whose memory is being freed, or saved first. */
struct unload {
    struct later telling; /* waits while it is an eviction that clients were not told of yet */
    struct residency *residency;
    struct model *model;
    struct call *call;   /* NULL: no client waits for this */
    struct claim *claim; /* the claim that the memory is for; NULL: none */
    bool stored;         /* beyond this process: see struct residency */
    bool save;
    struct save *saving; /* NULL: not requested, or no memory */
    void *room;          /* pinned memory for the copy; NULL: `saving` takes other memory */
    void *saved;         /* the copy; NULL: not requested, or it could not be made */
    bool lost;           /* the device was lost while the copy was made */
    bool spare;          /* the device may keep the arena for a moment */
    bool spared;         /* and does */
    bool told;           /* the driver said how much was free before and after: */
    uint64_t free_before, free_after;
    struct work work;
};

static void unload_abandoned(struct call *call)
{
    struct unload *unload = call->context;
    unload->call = NULL;
}

/* Copies an arena to pinned memory. NULL if this is not possible. */
static void *save_pinned(struct model *model, void *room, bool *ret_lost)
{
    struct device_fault fault;
    int r = device_arena_save(model->device, model->arena, 0, room, model->plan->arena_bytes, &fault);
    *ret_lost = r == -ENODEV;
    return r < 0 ? NULL : room;
}

/* Frees the arena, now or later. If now, asks the driver before and after how much memory is free. */
static void free_arena(struct unload *unload)
{
    struct device *device = unload->model->device;
    struct device_fault unused;
    unload->spared = unload->spare && spared_leave(&unload->residency->spared, unload->model, unload->stored);
    if (unload->spared)
        return;
    unload->told = device_memory_free(device, &unload->free_before, &unused) == 0;
    device_arena_free(device, unload->model->arena, unload->model->plan->arena_bytes);
    unload->told = unload->told && device_memory_free(device, &unload->free_after, &unused) == 0;
}

/* What the journal gets of a model beside a line. Valid as long as the model. */
static struct log_fields fields_of(const struct model *model, const char *id)
{
    return (struct log_fields){.id = id,
                               .model = model->name,
                               .device = model->device->id,
                               .has_bytes = true,
                               .bytes = model->plan->arena_bytes};
}

static void unload_work(struct work *work)
{
    struct unload *unload = work->data;
    worker_step_back();
    if (unload->room)
        unload->saved = save_pinned(unload->model, unload->room, &unload->lost);
    else if (unload->saving)
        unload->saved = save_run(unload->saving, &unload->lost);
    if (unload->stored)
        unload->residency->left(unload->residency->keeper);
    free_arena(unload);
}

/* One load may evict hundreds of models, and each is told to all who watch: so this is done later. What memory is free
 * is right at once. */
static void tell_eviction(struct later *telling)
{
    const struct unload *unload = (struct unload *)((char *)telling - offsetof(struct unload, telling));
    events_emit(unload->residency->events, "evicted", unload->model, NULL);
}

static void unload_worked(struct work *work)
{
    struct unload *unload = work->data;
    struct residency *residency = unload->residency;
    struct model *model = unload->model;
    if (unload->telling.waits) { /* before its end is told */
        later_drop(&residency->core->laters, &unload->telling);
        tell_eviction(&unload->telling);
    }
    save_free(unload->saving);
    model->arena = NULL;
    model->export = (struct device_export){.fd = -1};
    registry_unreserve(model);
    if (unload->spared)
        spared_later(&residency->spared);
    else if (unload->told && !residency->core->stopping) { /* what is kept beyond this process is not freed */
        const struct spare_origin origin = spared_origin(model);
        spared_check(model->device, &origin, model->plan->arena_bytes, unload->free_before, unload->free_after);
    }
    if (unload->lost)
        residency_lose_device(residency, model->device);
    if (unload->room && !unload->saved && !unload->lost) /* a GPU that is lost may still be writing there */
        host_pool_give(residency->cache.pool, unload->room);
    if (unload->saved) {
        model->cache = unload->saved;
        model->cache_pinned = unload->room;
        model_move(model, MODEL_CACHED);
        const struct log_fields fields = fields_of(model, MESSAGE_MODEL_CACHED);
        log_client_fields(LOG_LEVEL_INFO, &fields, "model=%s id=%" PRIu64 " saved to host memory", model->name,
                          model->id);
        events_emit(residency->events, "cached", model, NULL);
        residency_idle(residency, model);
    } else {
        const struct log_fields fields = fields_of(model, MESSAGE_MODEL_UNLOADED);
        if (!residency->core->stopping) /* else the service manager may keep it for the next daemon */
            log_client_fields(LOG_LEVEL_INFO, &fields, "model=%s id=%" PRIu64 " unloaded", model->name, model->id);
        if (unload->save)
            host_cache_count(&residency->cache, 0, model->plan->arena_bytes);
        events_emit(residency->events, "unloaded", model, NULL);
        registry_remove(residency->registry, model);
    }
    struct claim *claim = unload->claim;
    if (claim && --claim->n_victims == 0)
        claim->granted(claim);
    residency->freed(residency->context);
    if (unload->call)
        call_reply(unload->call, describe_state("unloaded"), NULL, 0);
    free(unload);
    core_changed(residency->core);
    core_job_end(residency->core);
}

/* NULL: no memory. */
static struct unload *unload_begin(struct residency *residency, struct model *model, struct call *call,
                                   struct claim *claim, bool save, void *room)
{
    assert(!model_in_use(model) && !model->load && model->arena);
    struct unload *unload = calloc(1, sizeof(*unload));
    if (!unload)
        return NULL;
    *unload = (struct unload){
        .residency = residency, .model = model, .call = call, .claim = claim, .save = save, .room = room};
    if (call) {
        call->context = unload;
        call->abandoned = unload_abandoned;
    }
    /* A load that waits for the memory gains nothing by it, unless it gets this very arena. */
    unload->spare = !residency->core->stopping && (!claim || model->arena_own);
    model_move(model, save ? MODEL_SAVING : MODEL_UNLOADING);
    unload->stored = residency->leaves && residency->leaves(residency->keeper, model);
    if (save && !room)
        unload->saving =
            save_new(residency->core, model, devices_host(residency->devices), residency->cache.lock_memory);
    core_job_begin(residency->core);
    worker_queue(residency->core->queue, &unload->work, unload, unload_work, unload_worked);
    return unload;
}

void residency_unload(struct residency *residency, struct model *model, struct call *call)
{
    if (model->state == MODEL_CACHED) {
        host_cache_forget(&residency->cache, model);
        if (call)
            call_reply(call, describe_state("unloaded"), NULL, 0);
    } else if (!unload_begin(residency, model, call, NULL, false, NULL) && call)
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
}

void residency_drain(struct residency *residency, struct model *model, double seconds)
{
    const uint64_t now = uv_hrtime();
    const uint64_t ends = seconds > 0 ? now + seconds_to_ns(seconds) : UINT64_MAX;
    model_move(model, MODEL_DRAINING);
    model_set_pinned(model, false); /* it goes */
    /* A second request does not make the drain end later than the first one said. */
    model->drain_ends = model->drains > 0 ? min_u64(model->drain_ends, ends) : ends;
    if (model->drains == 0)
        model->drains = now;
    events_emit(residency->events, "draining", model, NULL);
    uv_timer_start(&residency->reaper, reap, 0, 0);
    residency_idle(residency, model);
}

/* --- making room --- */

static bool evict(struct residency *residency, struct model *model, struct claim *claim)
{
    uint64_t bytes = model->plan->arena_bytes;
    const bool lost = model->state == MODEL_FAILED;
    void *room = NULL;
    bool save =
        !lost && !device_is_host(model->device) && host_cache_make_room(&residency->cache, model->device, bytes, &room);
    struct unload *unload = unload_begin(residency, model, NULL, claim, save, room);
    if (!unload) {
        if (room)
            host_pool_give(residency->cache.pool, room);
        return false;
    }
    if (save)
        host_cache_count(&residency->cache, bytes, 0);
    counters_eviction(&residency->core->counters, bytes);
    log_client_fields(LOG_LEVEL_INFO,
                      (&(const struct log_fields){.id = MESSAGE_MODEL_EVICTED,
                                                  .model = model->name,
                                                  .device = model->device->id,
                                                  .has_bytes = true,
                                                  .bytes = bytes}),
                      "model=%s id=%" PRIu64 " evicted", model->name, model->id);
    if (claim)
        claim->n_victims++;
    registry_unreserve(model); /* its bytes now belong to the claim */
    if (lost)
        registry_discharge(model); /* so do these */
    later_run(&residency->core->laters, &unload->telling, tell_eviction);
    return true;
}

int residency_reserve(struct residency *residency, struct claim *claim, struct model *model,
                      const struct admission_want *want, struct room_shortage *ret_shortage)
{
    struct model **victims;
    size_t n;
    int r = admission_choose(residency->registry, want, &victims, &n, ret_shortage);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n && r == 0; i++)
        r = evict(residency, victims[i], claim) ? 0 : -ENOMEM;
    free(victims);
    if (r == 0)
        registry_reserve(model, want->bytes);
    return r;
}

unsigned residency_make_room(struct residency *residency, struct claim *claim, struct device *device, uint64_t needed)
{
    const size_t capacity = residency->registry->n_models;
    struct model **victims = calloc(capacity + 1, sizeof(struct model *));
    struct room_shortage unused;
    size_t n = 0;
    unsigned gone = 0;
    if (!victims)
        return 0;
    /* Ask for `needed` more than what the ledger has free, so that evictions must provide all of `needed`. */
    const uint64_t limit = device_limit(device);
    const uint64_t full = limit > device->used ? limit - device->used : 0;
    if (admission_victims(residency->registry, device, full + needed, 0, 0, victims, &n, &unused) == 0)
        for (size_t i = 0; i < n; i++)
            gone += evict(residency, victims[i], claim);
    free(victims);
    return gone;
}

/* --- time to live --- */

static uint64_t time_to_live_ends(const struct model *model)
{
    uint64_t ttl = (uint64_t)model->ttl;
    return ttl > UINT64_MAX / 2000000000u ? UINT64_MAX : model->idle_since + ttl * 1000000000u;
}

static bool time_to_live_runs(const struct model *model)
{
    return model->ttl >= 0 && admission_may_go(model) &&
           (model->state == MODEL_RESIDENT || model->state == MODEL_FAILED || model->state == MODEL_CACHED);
}

static void name_holders(const struct model *model)
{
    const struct lease *lease;
    LIST_FOREACH(lease, &model->leases, of_model)
    {
        log_client_fields(LOG_LEVEL_WARNING,
                          (&(const struct log_fields){.id = MESSAGE_LEASE_HELD,
                                                      .model = model->name,
                                                      .device = model->device->id,
                                                      .has_uid = true,
                                                      .uid = lease->holder->uid,
                                                      .pid = lease->holder->pid}),
                          "model=%s id=%" PRIu64 " drains since %.0f s, and lease=%" PRIu64 " of pid=%d uid=%u %s",
                          model->name, model->id, (double)(uv_hrtime() - model->drains) / 1e9, lease->id,
                          (int)lease->holder->pid, (unsigned)lease->holder->uid,
                          lease->told ? "was told and does not let go"
                                      : "was not told: it has not asked anything since");
    }
}

/* Checks a draining model: names lease holders that do not end their leases, and takes the model's name when the drain
 * took too long. Returns the time of the next check. */
static uint64_t drain_on(struct residency *residency, struct model *model, uint64_t now)
{
    const uint64_t notice = model->drains + DRAIN_NOTICE_NS;
    const bool over = now >= model->drain_ends && !model_nameless(model);
    if (!model->holders_told && (over || now >= notice)) {
        model->holders_told = true;
        name_holders(model);
    }
    if (over) {
        log_client(LOG_LEVEL_WARNING, "model=%s id=%" PRIu64 " has not gone in time: its name is free", model->name,
                   model->id);
        model_lose_name(model);
        events_emit(residency->events, "renamed", model, NULL);
        residency->freed(residency->context);
    }
    const uint64_t ends = model_nameless(model) ? UINT64_MAX : model->drain_ends;
    return model->holders_told ? ends : min_u64(notice, ends);
}

/* Unloads the models whose time to live is over, and sets the timer for the next one. */
static void reap(uv_timer_t *timer)
{
    struct residency *residency = timer->data;
    if (residency->core->stopping)
        return;
    uint64_t now = uv_hrtime(), next = UINT64_MAX;
    struct model *next_model;
    for (struct model *model = TAILQ_FIRST(&residency->registry->models); model; model = next_model) {
        if (model->state == MODEL_DRAINING)
            next = min_u64(next, drain_on(residency, model, now));
        next_model = TAILQ_NEXT(model, link); /* only now: a load that drain_on() woke may have dropped cached models */
        if (!time_to_live_runs(model))
            continue;
        uint64_t ends = time_to_live_ends(model);
        if (ends > now)
            next = min_u64(next, ends);
        else if (model->state == MODEL_CACHED)
            host_cache_forget(&residency->cache, model);
        else if (unload_begin(residency, model, NULL, NULL, false, NULL))
            log_client_fields(LOG_LEVEL_INFO,
                              (&(const struct log_fields){
                                  .id = MESSAGE_MODEL_IDLE, .model = model->name, .device = model->device->id}),
                              "model=%s id=%" PRIu64 " was idle for %" PRId64 " s", model->name, model->id, model->ttl);
    }
    if (next < UINT64_MAX)
        uv_timer_start(timer, reap, (next - now) / 1000000 + 1, 0);
}

void residency_idle(struct residency *residency, struct model *model)
{
    if (model->state == MODEL_DRAINING && !model_in_use(model)) {
        residency_unload(residency, model, NULL);
        return;
    }
    if (residency->core->stopping)
        return;
    const bool cached = model->state == MODEL_CACHED;
    if (cached && model_nameless(model) && !model_in_use(model) && !model->load) {
        host_cache_forget(&residency->cache,
                          model); /* it lost its names while it was saved, or compared with its file */
        residency->freed(residency->context);
        return;
    }
    /* The timer unloads it later, because the caller may be iterating over the list of models. */
    if (time_to_live_runs(model))
        uv_timer_start(&residency->reaper, reap, 0, 0);
    /* It can now be evicted for a load that waits; or, if it is cached, be loaded back. Then it may be gone after
     * this. */
    if (admission_may_go(model) || (cached && !model_in_use(model)))
        residency->freed(residency->context);
}

int residency_init(struct residency *residency)
{
    residency->reaper.data = residency;
    residency->cache.core = residency->core;
    residency->cache.devices = residency->devices;
    residency->cache.registry = residency->registry;
    residency->cache.events = residency->events;
    residency->spared.core = residency->core;
    residency->spared.devices = residency->devices;
    residency->spared.registry = residency->registry;
    int r = spared_init(&residency->spared);
    return r < 0 ? r : uv_timer_init(residency->core->loop, &residency->reaper);
}

void residency_close(struct residency *residency)
{
    spared_close(&residency->spared);
    uv_close((uv_handle_t *)&residency->reaper, NULL);
}

/* --- callbacks of the registry --- */

void residency_lease_ended(void *context, struct model *model)
{
    struct residency *residency = context;
    events_emit(residency->events, "detached", model, NULL);
    residency_idle(residency, model);
}

void residency_model_failed(void *context, struct model *model)
{
    struct residency *residency = context;
    events_emit(residency->events, "failed", model, "its device is lost");
    residency_idle(residency, model);
}

void residency_lose_device(struct residency *residency, struct device *device)
{
    if (device->failed)
        return;
    device->failed = true;
    log_write_fields(LOG_LEVEL_ERROR, &(const struct log_fields){.id = MESSAGE_DEVICE_LOST, .device = device->id},
                     "device=%s is lost", device->id);
    registry_lose_device(residency->registry, device);
}
