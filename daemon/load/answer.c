#include "daemon/base/json_text.h"
#include "daemon/base/log.h"
#include "daemon/load/naming.h"
#include "daemon/load/states.h"
#include "daemon/memory/residency.h"
#include "daemon/model/calling.h"
#include "daemon/session/attach.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/errors.h"

#include <inttypes.h>
#include <stdlib.h>

void load_deserted(struct waiters *waiters)
{
    struct load *load = (struct load *)((char *)waiters - offsetof(struct load, waiters));
    if (load->detached)
        return;
    failure_set(&load->failure, WIRE_Cancelled, NULL);
    load_step(load);
}

/* The part of the reply that only the call gets that began the load: phases, and the trace if there is one. */
static cJSON *describe_how(const struct load *load)
{
    cJSON *reply = cJSON_CreateObject();
    describe_phases(reply, load->model, &load->phases);
    if (load->trace)
        json_add_item(reply, "trace", trace_describe(load->trace));
    return reply;
}

void load_attach(const struct loads *loads, struct model *model, struct call *call)
{
    if (model_attachable(model, conn_peer(call->conn))) {
        attach_grant(loads->registry, loads->events, model, call, NULL);
        return;
    }
    char room[MODEL_NAME_SIZE];
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(call->parameters, "name");
    const char *asked = cJSON_IsString(name) ? name->valuestring : model_called(model, conn_peer(call->conn), room);
    call_fail(call, WIRE_ModelNotFound, error_name(asked));
}

/* --- leases that are granted later --- */

/* A call that waits for its turn. Until then the model is held: what was loaded for it is not evicted before. */
struct late {
    struct loads *loads;
    struct model *model;
};

static void late_end(struct late *late)
{
    model_unhold(late->model);
    residency_idle(late->loads->residency, late->model);
    free(late);
}

static void late_abandoned(struct call *call)
{
    late_end(call->context);
}

static void late_attach(struct call *call)
{
    struct late *late = call->context;
    call->abandoned = NULL;
    load_attach(late->loads, late->model, call);
    late_end(late);
}

/* Returns false if there is no memory to do it later. */
static bool attach_later(struct load *load, struct call *call)
{
    struct late *late = malloc(sizeof(*late));
    if (!late)
        return false;
    *late = (struct late){.loads = load->loads, .model = load->model};
    model_hold(late->model);
    call->context = late;
    call->abandoned = late_abandoned;
    call_later(call, late_attach);
    return true;
}

/* The model is resident: answers all calls that still wait. A thousand may, and each answer may be long: Attach is
 * answered in turns when the others have taken as long as one turn may. */
static void waiters_reply(struct load *load)
{
    const uint64_t began = uv_hrtime();
    enum waiter_kind kind;
    struct call *call;
    while ((call = waiters_take_any(&load->waiters, &kind))) {
        if (kind == WAIT_ATTACH && uv_hrtime() - began > CONN_TURN_NS && attach_later(load, call))
            continue;
        if (kind == WAIT_ATTACH || kind == WAIT_CREATE)
            load_attach(load->loads, load->model, call);
        else if (kind == WAIT_LEASE)
            attach_grant(load->loads->registry, load->loads->events, load->model, call, describe_how(load));
        else if (kind == WAIT_END)
            call_fail(call, WIRE_ModelBusy,
                      describe_busy(load->model, conn_peer(call->conn))); /* too late to cancel the load */
        else if (kind == WAIT_JOINED)
            call_reply(call, describe_loaded(load->model, NULL, conn_peer(call->conn)), NULL, 0);
        else {
            cJSON *reply = describe_how(load);
            json_add_item(reply, "model", describe_model(load->model, conn_peer(call->conn)));
            call_reply(call, reply, NULL, 0);
        }
    }
}

static void waiters_fail(struct load *load)
{
    enum waiter_kind kind;
    struct call *call;
    while ((call = waiters_take_any(&load->waiters, &kind))) {
        if (kind == WAIT_END && load->failure.error == WIRE_Cancelled)
            call_reply(call, NULL, NULL, 0);
        else
            call_fail(call, load->failure.error, failure_parameters(&load->failure));
    }
}

void load_answer(struct load *load)
{
    creation_give_up(load);
    waiters_fail(load);
}

static void load_progress(const struct load *load, struct progress *ret)
{
    *ret = (struct progress){.done = load->filled_bytes};
    if (load->model && load->model->plan)
        ret->total = load->restores ? load->model->plan->arena_bytes : load->model->plan->model_bytes;
    if (load->filling)
        ret->elapsed_ns = uv_hrtime() - load->filling;
}

static cJSON *describe_this(void *context, uint32_t names)
{
    const struct load *load = context;
    struct progress progress;
    load_progress(load, &progress);
    return describe_loading(load->model, &progress, names);
}

void load_report(struct load *load)
{
    if (load->model)
        waiters_tell(&load->waiters, load->model, describe_this, load);
}

/* --- the end --- */

/* For the log. */
static const char *path_of(const struct model *model)
{
    if (model_is_published(model))
        return "what a client wrote";
    return model->source->path ? model->source->path : "a file without a path";
}

/* Notes the rate of this load. If the link was measured as slower than this rate, something else used the link during
 * the measurement: it is at least as fast as the load. */
static void load_rate(const struct load *load)
{
    struct device *device = load->model->device;
    const uint64_t elapsed = uv_hrtime() - load->filling;
    device->rate = elapsed ? (uint64_t)((double)load->filled_bytes * 1e9 / (double)elapsed) : 0;
    if (device->link > 0 && device->link < device->rate)
        device->link = device->rate;
}

void load_succeed(struct load *load)
{
    struct model *model = load->model;
    model->load = NULL;
    model->departs = false;
    model_move(model, MODEL_RESIDENT);
    model->idle_since = uv_hrtime();
    load->phases.total_ns = uv_hrtime() - load->began;
    if (!load_creates(load)) /* how long a client takes to write is no time of a load */
        counters_load(&load->loads->core->counters, load->restores ? OUTCOME_RESTORED : OUTCOME_LOADED,
                      load->filled_bytes, load->phases.total_ns);
    host_cache_drop(&load->loads->residency->cache, model);
    if (!load->restores && load->filling)
        load_rate(load);
    log_client_fields(LOG_LEVEL_INFO,
                      (&(const struct log_fields){.id = MESSAGE_MODEL_RESIDENT,
                                                  .model = model->name,
                                                  .device = model->device->id,
                                                  .has_bytes = true,
                                                  .bytes = model->plan->arena_bytes,
                                                  .has_duration = true,
                                                  .duration_ns = load->phases.total_ns,
                                                  .has_uid = true,
                                                  .uid = load->request.uid}),
                      "model=%s id=%" PRIu64 " uid=%u resident on %s: %" PRIu64 " bytes in %.3f s, from %" PRIu64
                      " bytes of %s",
                      model->name, model->id, (unsigned)load->request.uid, model->device->id, model->plan->arena_bytes,
                      (double)load->phases.total_ns / 1e9, model->source->size, path_of(model));
    events_emit(load->loads->events, "resident", model, NULL);
    naming_switch(load, model);
    if (load->request.done)
        load->request.done(load->request.context, model, NULL);
    waiters_reply(load);
    if (!load->restores || !naming_retire(load->loads, model))
        residency_idle(load->loads->residency, model);
    loads_retry(load->loads); /* another load may wait to compare this model with its file */
}

/* The load ended before there was a model. */
static void tell_refused(const struct load *load, const char *text)
{
    const struct source *source = load_creates(load) ? NULL : load->job.source;
    const uint64_t took = uv_hrtime() - load->began;
    const struct log_fields fields = {.id = MESSAGE_LOAD_REFUSED,
                                      .has_duration = true,
                                      .duration_ns = took,
                                      .has_uid = true,
                                      .uid = load->request.uid};
    if (source)
        log_client_fields(LOG_LEVEL_NOTICE, &fields,
                          "uid=%u load refused: %s (after %.3f s, from %" PRIu64 " bytes of %s)",
                          (unsigned)load->request.uid, text, (double)took / 1e9, source->size,
                          source->path ? source->path : "a file without a path");
    else /* it has no files, or they could not be opened: then the text says which */
        log_client_fields(LOG_LEVEL_NOTICE, &fields, "uid=%u load refused: %s (after %.3f s)",
                          (unsigned)load->request.uid, text, (double)took / 1e9);
}

void load_give_up(struct load *load)
{
    struct model *model = load->model;
    struct loads *loads = load->loads;
    char text[512];
    failure_text(&load->failure, text, sizeof(text));
    if (!load_creates(load))
        counters_load(&loads->core->counters,
                      load->failure.error == WIRE_Cancelled ? OUTCOME_CANCELLED : OUTCOME_FAILED, load->filled_bytes,
                      uv_hrtime() - load->began);
    const bool told = load->request.done; /* then the owner of `done` logs it */
    if (!model && !told)
        tell_refused(load, text);
    else if (model) {
        if (!told)
            log_client_fields(LOG_LEVEL_NOTICE,
                              (&(const struct log_fields){.id = MESSAGE_LOAD_FAILED,
                                                          .model = model->name,
                                                          .device = model->device->id,
                                                          .has_duration = true,
                                                          .duration_ns = uv_hrtime() - load->began,
                                                          .has_uid = true,
                                                          .uid = load->request.uid}),
                              "model=%s id=%" PRIu64 " uid=%u not loaded: %s (after %.3f s, from %" PRIu64
                              " bytes of %s)",
                              model->name, model->id, (unsigned)load->request.uid, text,
                              (double)(uv_hrtime() - load->began) / 1e9, model->source->size, path_of(model));
        registry_unreserve(model);
        model->load = NULL;
        model->departs = false;
        events_emit(loads->events, load->failure.error == WIRE_Cancelled ? "cancelled" : "failed", model, text);
        load->model = NULL; /* what follows may serve other loads, which may drop the cached model */
        if (load->restores) {
            model->takes[0] = '\0';
            model_move(model, MODEL_CACHED);
            if (!naming_retire(loads, model))
                residency_idle(loads->residency, model);
        } else
            registry_remove(loads->registry, model);
        loads_retry(loads);
    }
    if (load->request.done)
        load->request.done(load->request.context, NULL, text);
    creation_give_up(load);
    waiters_fail(load);
}
