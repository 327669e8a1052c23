#include "daemon/load.h"

#include "daemon/attach.h"
#include "daemon/describe.h"
#include "daemon/failure.h"
#include "daemon/fill.h"
#include "daemon/load_job.h"
#include "daemon/log.h"
#include "daemon/residency.h"
#include "daemon/server.h"
#include "daemon/trace.h"
#include "daemon/users.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum load_state {
    LOAD_IDENTIFYING,
    LOAD_OPENING,
    LOAD_RESERVING,
    LOAD_ALLOCATING,
    LOAD_FILLING,
    LOAD_SEALING,
    LOAD_STOPPING,
    LOAD_RELEASING,
    LOAD_DONE,
};

#define BIT(state) (1u << (state))

/* The states that may follow each. */
static const unsigned transitions[] = {
    [LOAD_IDENTIFYING] = BIT(LOAD_OPENING) | BIT(LOAD_RESERVING) | BIT(LOAD_DONE),
    [LOAD_OPENING] = BIT(LOAD_RESERVING) | BIT(LOAD_STOPPING),
    [LOAD_RESERVING] = BIT(LOAD_ALLOCATING) | BIT(LOAD_STOPPING),
    [LOAD_ALLOCATING] = BIT(LOAD_FILLING) | BIT(LOAD_STOPPING),
    [LOAD_FILLING] = BIT(LOAD_SEALING) | BIT(LOAD_STOPPING),
    [LOAD_SEALING] = BIT(LOAD_DONE) | BIT(LOAD_STOPPING),
    [LOAD_STOPPING] = BIT(LOAD_RELEASING) | BIT(LOAD_DONE),
    [LOAD_RELEASING] = BIT(LOAD_DONE),
    [LOAD_DONE] = 0,
};

struct load {
    TAILQ_ENTRY(load) link;
    struct server *server;
    enum load_state state;
    struct load_request request; /* its strings are the load's own, its descriptors are gone */
    struct model *model;         /* NULL before it was identified */
    struct waiters waiters;
    bool detached; /* goes on when nobody waits */
    struct failure failure;

    struct load_job job; /* the worker's while in_job */
    bool in_job;
    bool blocked;       /* until a model that has its name, its file or its memory is gone */
    bool reserved;      /* the ledger has its bytes */
    unsigned n_victims; /* models that go for it, and are not gone yet */

    bool restores;           /* a cached model, from host memory */
    uint64_t awaited;        /* id of a model on its way to host memory, to be brought back from there; 0: none */
    const struct plan *plan; /* what is filled: the model's, or the job's linear one */
    struct consumer consumer;
    size_t next_chunk;
    struct fill *fills; /* one for each slot of the device */
    size_t n_fills;     /* under way */
    uint64_t filled_bytes;
    uint64_t began;   /* uv_hrtime() of the request */
    uint64_t filling; /* and of the first fill */
    struct load_phases phases;
    struct trace *trace; /* NULL: nobody wants it */
};

static void load_step(struct load *load);

static struct device *load_device(const struct load *load)
{
    return load->request.device;
}

static void load_move(struct load *load, enum load_state state)
{
    assert(transitions[load->state] & BIT(state));
    load->state = state;
}

/* What clients see of a load's state is the model's. */
static void load_show(struct load *load, enum load_state state, enum model_state shown)
{
    load_move(load, state);
    load->model->state = shown;
    load_report(load);
}

static void load_free(struct load *load)
{
    assert(waiters_empty(&load->waiters) && load->n_fills == 0 && load->n_victims == 0 && !load->in_job);
    struct server *server = load->server;
    TAILQ_REMOVE(&server->loads, load, link);
    server->n_loads--;
    failure_clear(&load->failure);
    load_job_clear(&load->job);
    free(load->fills);
    trace_free(load->trace);
    free((char *)(uintptr_t)load->request.name);
    free((char *)(uintptr_t)load->request.path);
    free(load);
    server_changed(server);
    server_job_end(server);
}

static void load_fail_memory(struct load *load)
{
    failure_set(&load->failure, WIRE_LimitExceeded, describe_limit("memory", 0));
}

static void load_fail_device(struct load *load, int error, const struct device_fault *fault)
{
    failure_set_device(&load->failure, error, fault);
    if (error == -ENODEV)
        server_device_failed(load->server, load_device(load));
}

/* --- those who wait --- */

static void load_deserted(struct waiters *waiters)
{
    struct load *load = (struct load *)((char *)waiters - offsetof(struct load, waiters));
    if (load->detached)
        return;
    failure_set(&load->failure, WIRE_Cancelled, NULL);
    load_step(load);
}

/* Answers those who want to know that the model is resident; others have nothing to wait for any more. */
static void waiters_reply(struct load *load)
{
    enum waiter_kind kind;
    struct call *call;
    while ((call = waiters_take_any(&load->waiters, &kind))) {
        if (kind == WAIT_ATTACH)
            attach_grant(load->server, load->model, call);
        else if (kind == WAIT_END)
            call_fail(call, WIRE_ModelBusy, describe_busy(load->model)); /* too late to be cancelled */
        else if (kind == WAIT_JOINED)
            call_reply(call, describe_loaded(load->model, NULL), NULL, 0);
        else {
            cJSON *reply = describe_loaded(load->model, &load->phases);
            if (load->trace)
                cJSON_AddItemToObject(reply, "trace", trace_describe(load->trace));
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

void load_progress(const struct load *load, struct load_progress *ret)
{
    *ret = (struct load_progress){.done = load->filled_bytes};
    if (load->model && load->model->plan)
        ret->total = load->restores ? load->model->plan->arena_bytes : load->model->plan->model_bytes;
    if (load->filling)
        ret->elapsed_ns = uv_hrtime() - load->filling;
}

static cJSON *describe_this(void *context)
{
    struct load *load = context;
    return describe_loading(load->model, load);
}

void load_report(struct load *load)
{
    if (load->model)
        waiters_tell(&load->waiters, describe_this, load);
}

/* --- the end --- */

static void load_succeed(struct load *load)
{
    struct model *model = load->model;
    model->load = NULL;
    model->state = MODEL_RESIDENT;
    model->idle_since = uv_hrtime();
    load->phases.total_ns = uv_hrtime() - load->began;
    residency_cache_drop(load->server, model);
    if (!load->restores && load->filling) {
        uint64_t elapsed = uv_hrtime() - load->filling;
        model->device->rate = elapsed ? (uint64_t)((double)load->filled_bytes * 1e9 / (double)elapsed) : 0;
    }
    log_info("model=%s id=%" PRIu64 " resident on %s: %" PRIu64 " bytes in %.3f s", model->name, model->id,
             model->device->id, model->plan->arena_bytes, (double)load->phases.total_ns / 1e9);
    events_emit(load->server->events, "resident", model, NULL);
    if (load->request.done)
        load->request.done(load->request.context, model, NULL);
    waiters_reply(load);
    residency_idle(load->server, model);
}

static void load_give_up(struct load *load)
{
    struct model *model = load->model;
    struct server *server = load->server;
    char text[512];
    failure_text(&load->failure, text, sizeof(text));
    if (!model)
        log_notice("uid=%u load refused: %s", (unsigned)load->request.uid, text);
    else {
        log_notice("model=%s id=%" PRIu64 " not loaded: %s", model->name, model->id, text);
        registry_release(model);
        model->load = NULL;
        events_emit(server->events, load->failure.error == WIRE_Cancelled ? "cancelled" : "failed", model, text);
        if (load->restores) {
            model->state = MODEL_CACHED;
            residency_idle(server, model);
        } else
            registry_remove(&server->registry, model);
        load->model = NULL;
        server_loads_retry(server);
    }
    if (load->request.done)
        load->request.done(load->request.context, NULL, text);
    waiters_fail(load);
}

static void load_finish(struct load *load)
{
    load_move(load, LOAD_DONE);
    if (load->failure.error == WIRE_OK)
        load_succeed(load);
    else
        load_give_up(load);
    load_free(load);
}

/* --- jobs on a worker --- */

static void load_job_work(uv_work_t *work)
{
    struct load_job *job = work->data;
    job->begin_ns = uv_hrtime();
    job->run(job);
    job->end_ns = uv_hrtime();
}

static void load_job_done(uv_work_t *work, int status)
{
    (void)status;
    struct load *load = (struct load *)((char *)work->data - offsetof(struct load, job));
    load->in_job = false;
    trace_add(load->trace, TRACE_LOAD, 0, load_job_name(&load->job), load->job.begin_ns, load->job.end_ns);
    load_step(load);
}

static void load_queue(struct load *load, void (*run)(struct load_job *job))
{
    assert(!load->in_job);
    load->job.run = run;
    load->job.status = 0;
    load->job.work.data = &load->job;
    load->in_job = true;
    int r = uv_queue_work(load->server->loop, &load->job.work, load_job_work, load_job_done);
    assert(r == 0); /* it only refuses a job without a function */
    (void)r;
}

/* --- filling --- */

static void load_count_part(struct load *load, const struct fill_part *part)
{
    load->phases.read_ns += part->count.read_ns;
    load->phases.decode_ns += part->count.decode_ns;
    const uint64_t read_end_ns = part->begin_ns + part->count.read_ns;
    trace_add(load->trace, TRACE_WORKER, part->worker, "read", part->begin_ns, read_end_ns);
    if (part->count.decode_ns > 0)
        trace_add(load->trace, TRACE_WORKER, part->worker, "dequantise", read_end_ns, part->end_ns);
}

static void load_trace_transfer(struct load *load, const struct transfer *transfer)
{
    const uint64_t copied_ns = transfer->end_ns - transfer->kernel_ns;
    trace_add(load->trace, TRACE_STREAM, 0, "copy", transfer->begin_ns, copied_ns);
    if (transfer->kernel_ns > 0)
        trace_add(load->trace, TRACE_STREAM, transfer->stream, "dequantise", copied_ns, transfer->end_ns);
}

static void load_filled(struct fill *fill)
{
    struct load *load = fill->context;
    struct slot *slot = fill->slot;
    load->n_fills--;
    if (fill->status == 0) {
        load->filled_bytes += fill->chunk->model_bytes;
        load->model->overflows += fill->overflows;
        for (size_t i = 0; i < fill->n_parts; i++)
            load_count_part(load, &fill->parts[i]);
        load->phases.copy_ns += fill->transfer.copy_ns;
        load->phases.kernel_ns += fill->transfer.kernel_ns;
        load_trace_transfer(load, &fill->transfer);
    } else if (fill->of_file)
        failure_set_file(&load->failure, fill->status, &fill->fault, load->model->source->path);
    else if (fill->status == -ENOMEM)
        failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                    describe_out_of_memory(load_device(load), load->model->plan->arena_bytes,
                                           device_available(load_device(load)), 0));
    else
        load_fail_device(load, fill->status, &fill->fault);
    struct server *server = load->server;
    load_step(load); /* may free the load */
    scheduler_give(server_scheduler(server, slot->device), slot);
}

/* The scheduler has a slot for us. */
static uint64_t load_use(struct consumer *consumer, struct slot *slot)
{
    struct load *load = (struct load *)((char *)consumer - offsetof(struct load, consumer));
    if (load->next_chunk == load->plan->n_chunks)
        return 0;
    struct fill *fill = &load->fills[slot->index];
    const struct chunk *chunk = &load->plan->chunks[load->next_chunk++];
    *fill = (struct fill){
        .source = load->model->source,
        .memory = load->restores ? load->model->cache : NULL,
        .plan = load->plan,
        .chunk = chunk,
        .slot = slot,
        .arena = load->model->arena,
        .mailbox = load->server->mailbox,
        .done = load_filled,
        .context = load,
    };
    load->n_fills++;
    fill_queue(load->server->loop, fill);
    return chunk->file_bytes > chunk->model_bytes ? chunk->file_bytes : chunk->model_bytes;
}

/* --- the states --- */

/* The model will soon be gone, and its name with it. */
static bool model_departs(const struct model *model)
{
    return model->state == MODEL_UNLOADING || (model->load && load_ends(model->load));
}

/* What the request wants of a model that is there already: its owner's to say, and that of those who rule the machine.
 */
static void load_adjust(const struct load *load, struct model *model)
{
    if (!load->request.trusted && load->request.uid != model->uid)
        return;
    model->pinned |= load->request.pin;
    if (load->request.ttl >= 0)
        model->ttl = load->request.ttl;
}

/* Goes on with a model that host memory has. */
static void load_begin_restore(struct load *load, struct model *model)
{
    load_adjust(load, model);
    load->restores = true;
    load->model = model;
    model->load = load;
    load_show(load, LOAD_RESERVING, MODEL_ALLOCATING);
    events_emit(load->server->events, "loading", model, NULL);
    load_queue(load, load_job_nothing); /* RESERVING begins when that comes back */
}

/* Answers those who wait for a model that is resident. */
static void waiters_grant(struct load *load, struct model *model)
{
    enum waiter_kind kind;
    struct call *call;
    while ((call = waiters_take_any(&load->waiters, &kind))) {
        if (kind == WAIT_ATTACH)
            attach_grant(load->server, model, call);
        else
            call_reply(call, describe_loaded(model, NULL), NULL, 0);
    }
}

/* Somebody else loads this file, or has: those who wait for this load wait for that, and this one is over. */
static void load_join(struct load *load, struct model *model)
{
    struct load *other = model->load;
    load_adjust(load, model);
    struct call *call;
    if (other) {
        while (other->state >= LOAD_FILLING && (call = waiters_take(&load->waiters, WAIT_ALLOCATED)))
            call_reply(call, describe_loaded(model, NULL), NULL, 0);
        waiters_move(&load->waiters, &other->waiters);
        other->detached |= load->detached;
    } else
        waiters_grant(load, model);
    if (load->request.done)
        load->request.done(load->request.context, model, NULL);
    model->idle_since = uv_hrtime();
    residency_idle(load->server, model);
    load_move(load, LOAD_DONE);
    load_free(load);
}

/* A new model of this name, in the registry. NULL if memory is short. */
static struct model *load_new_model(struct load *load, const char *name)
{
    struct model *model = calloc(1, sizeof(*model));
    if (!model)
        return NULL;
    strcpy(model->name, name);
    model->form = load->request.form;
    model->device = load_device(load);
    model->uid = load->request.uid;
    model->pinned = load->request.pin;
    model->ttl = load->request.ttl;
    model->private = load->request.private;
    model->source = load->job.source;
    load->job.source = NULL;
    model->table_fd = -1;
    model->export.fd = -1;
    model->load = load;
    LIST_INIT(&model->leases);
    registry_add(&load->server->registry, model);
    return model;
}

/* The model that was being saved to host memory is there by now, or gone. Returns true if the load is over. */
static bool load_saved(struct load *load)
{
    struct model *model = registry_find(&load->server->registry, load->request.name);
    if (!model || model->id != load->awaited) {
        failure_set(&load->failure, WIRE_ModelNotFound, describe_name(load->request.name));
        return false;
    }
    if (model_departs(model) || model->state == MODEL_SAVING) {
        load->blocked = true;
        return false;
    }
    if (model->state != MODEL_CACHED) {
        load_join(load, model);
        return true;
    }
    load_begin_restore(load, model);
    return false;
}

/* Returns true if the load is over: joined to another. */
static bool load_identified(struct load *load)
{
    if (load->awaited)
        return load_saved(load);
    struct server *server = load->server;
    struct load_job *job = &load->job;
    if (job->status < 0) {
        failure_set_file(&load->failure, job->status, &job->fault, load->request.path);
        return false;
    }
    if (load->request.path && !load->request.trusted && (!job->source->readable_by_all || geteuid() == 0)) {
        failure_set(
            &load->failure, WIRE_PermissionDenied,
            describe_reason("the daemon would read it with rights that are not yours: pass it as a descriptor"));
        return false;
    }
    if (load_device(load)->failed) {
        failure_set(&load->failure, WIRE_DeviceNotFound, describe_device_name(load_device(load)->id));
        return false;
    }
    struct model *model = registry_find_source(&server->registry, job->source, load->request.form, load_device(load),
                                               load->request.private ? &load->request.uid : NULL);
    if (model && (model_departs(model) || model->state == MODEL_SAVING)) {
        load->blocked = true;
        return false;
    }
    if (model && model->state == MODEL_CACHED) {
        load_begin_restore(load, model);
        return false;
    }
    if (model) {
        load_join(load, model);
        return true;
    }
    char derived[MODEL_NAME_MAX + 1];
    if (!load->request.name)
        model_name_derive(job->source->path, derived);
    const char *name = load->request.name ? load->request.name : derived;
    model = registry_find(&server->registry, name);
    if (model && model->state == MODEL_CACHED) {
        residency_forget(server, model); /* nobody uses it; its name is wanted */
        model = NULL;
    }
    if (model && (model_departs(model) || model->state == MODEL_SAVING)) {
        load->blocked = true;
        return false;
    }
    if (model) {
        failure_set(&load->failure, WIRE_NameInUse, describe_name(name));
        return false;
    }
    load->model = load_new_model(load, name);
    if (!load->model) {
        load_fail_memory(load);
        return false;
    }
    load_show(load, LOAD_OPENING, MODEL_OPENING);
    events_emit(server->events, "loading", load->model, NULL);
    job->opened = load->model->source;
    load_queue(load, load_job_open);
    return false;
}

/* Takes the device's bytes for the model, if need be from others; waits for those to go. */
static void load_reserve(struct load *load)
{
    struct model *model = load->model;
    uint64_t limit;
    if (!load->reserved && !load->restores &&
        !user_may(load->server, load->request.uid, LIMIT_BYTES, model->plan->arena_bytes, &limit)) {
        failure_set(&load->failure, WIRE_LimitExceeded, describe_limit(user_limit_name(LIMIT_BYTES), limit));
        return;
    }
    if (!load->reserved) {
        struct residency_shortage shortage;
        int r = residency_reserve(load->server, load, model, &load->n_victims, &shortage);
        if (r == -EAGAIN) {
            load->blocked = true; /* memory is on its way back */
            return;
        }
        if (r < 0) {
            failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                        describe_out_of_memory(load_device(load), model->plan->arena_bytes, shortage.available,
                                               shortage.evictable));
            return;
        }
        load->reserved = true;
    }
    if (load->n_victims > 0)
        return;
    load_show(load, LOAD_ALLOCATING, MODEL_ALLOCATING);
    load->job.planned = model->plan;
    load->job.decode_on_cpu = load->request.decode_on_cpu;
    load_queue(load, load->restores ? load_job_reallocate : load_job_allocate);
}

static void load_opened(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    model->header = job->header;
    model->plan = job->plan;
    job->header = NULL;
    job->plan = NULL;
    load->phases.parse_ns = job->elapsed_ns;
    switch (job->status) {
    case 0:
        load_move(load, LOAD_RESERVING);
        load_reserve(load);
        break;
    case -EBADMSG:
        if (model->source->n_files > 1) {
            char reason[sizeof(job->gguf_fault.reason) + 32];
            snprintf(reason, sizeof(reason), "file %zu: %s", job->file + 1, job->gguf_fault.reason);
            failure_set_invalid(&load->failure, reason, job->gguf_fault.offset);
        } else
            failure_set_invalid(&load->failure, job->gguf_fault.reason, job->gguf_fault.offset);
        break;
    case -ENOTSUP:
        failure_set(&load->failure, WIRE_UnsupportedType, describe_unsupported(&model->header->tensors[job->tensor]));
        break;
    case -EOVERFLOW:
        failure_set_invalid(&load->failure, "the tensors together are larger than any memory", 0);
        break;
    case -ENODATA:
        failure_set_file(&load->failure, -ESTALE, &job->fault, model->source->path);
        break;
    case -ENOMEM:
        load_fail_memory(load);
        break;
    default:
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    }
}

static void load_filled_all(struct load *load)
{
    scheduler_remove(server_scheduler(load->server, load_device(load)), &load->consumer);
    load_show(load, LOAD_SEALING, MODEL_SEALING);
    load->job.opened = load->restores ? NULL : load->model->source;
    load->job.planned = load->model->plan;
    load->job.filled = load->model->arena;
    load_queue(load, load_job_seal);
}

static void load_allocated(struct load *load)
{
    struct load_job *job = &load->job;
    load->model->arena = job->arena;
    job->arena = NULL;
    load->plan = load->restores ? job->plan : load->model->plan;
    load->phases.allocate_ns = job->elapsed_ns;
    if (job->status == -ENOMEM)
        failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                    describe_out_of_memory(load_device(load), load->model->plan->arena_bytes, job->memory_free, 0));
    else if (job->status < 0)
        load_fail_device(load, job->status, &job->fault);
    if (load->failure.error != WIRE_OK)
        return;
    load->fills = calloc(staging_slots(load_device(load)->staging), sizeof(*load->fills));
    if (!load->fills) {
        load_fail_memory(load);
        return;
    }
    load->filling = uv_hrtime();
    load_show(load, LOAD_FILLING, MODEL_FILLING);
    struct call *call;
    while ((call = waiters_take(&load->waiters, WAIT_ALLOCATED)))
        call_reply(call, describe_loaded(load->model, NULL), NULL, 0);
    scheduler_add(server_scheduler(load->server, load_device(load)), &load->consumer);
    if (load->plan->n_chunks == 0)
        load_filled_all(load);
}

static void load_sealed(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    if (job->status == -ESTALE)
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    else if (job->status < 0)
        load_fail_device(load, job->status, &job->fault);
    if (load->failure.error != WIRE_OK)
        return;
    model->export = job->export;
    if (job->table_fd >= 0)
        model->table_fd = job->table_fd;
    job->table_fd = -1;
}

/* Nothing more is begun; when nothing is under way, the memory is released. */
static void load_stop(struct load *load)
{
    if (load->state != LOAD_STOPPING) {
        scheduler_remove(server_scheduler(load->server, load_device(load)), &load->consumer);
        load_show(load, LOAD_STOPPING, MODEL_UNLOADING);
    }
    if (load->n_fills > 0 || load->n_victims > 0)
        return;
    if (load->job.arena) { /* cancelled while it was taken */
        load->model->arena = load->job.arena;
        load->job.arena = NULL;
    }
    if (!load->model->arena) {
        load_finish(load);
        return;
    }
    load_move(load, LOAD_RELEASING);
    load->job.filled = load->model->arena;
    load_queue(load, load_job_release);
}

/* Does what the state asks for now that something it waited for is over. Returns true if the load is over and gone. */
static bool load_advance(struct load *load)
{
    switch (load->state) {
    case LOAD_IDENTIFYING:
        return load_identified(load);
    case LOAD_OPENING:
        load_opened(load);
        break;
    case LOAD_RESERVING:
        load_reserve(load);
        break;
    case LOAD_ALLOCATING:
        load_allocated(load);
        break;
    case LOAD_FILLING:
        if (load->next_chunk == load->plan->n_chunks && load->n_fills == 0)
            load_filled_all(load);
        break;
    case LOAD_SEALING:
        load_sealed(load);
        if (load->failure.error != WIRE_OK)
            break;
        load_finish(load);
        return true;
    case LOAD_STOPPING:
    case LOAD_RELEASING:
    case LOAD_DONE:
        assert(!"a load that stops has failed");
    }
    return false;
}

/* Moves a load on: called whenever something that it may wait for is over. May free it. */
static void load_step(struct load *load)
{
    if (load->in_job)
        return; /* it comes back here */
    if (load->failure.error == WIRE_OK && load_advance(load))
        return;
    if (load->failure.error == WIRE_OK || load->in_job)
        return;
    if (load->state == LOAD_RELEASING) {
        load->model->arena = NULL;
        load_finish(load);
    } else if (load->state == LOAD_IDENTIFYING)
        load_finish(load);
    else
        load_stop(load);
}

/* A load with nothing but its request. NULL if memory is short. */
static struct load *load_new(struct server *server, const struct load_request *request)
{
    struct load *load = calloc(1, sizeof(*load));
    if (!load)
        return NULL;
    load->request = *request;
    load->request.name = request->name ? strdup(request->name) : NULL;
    load->request.path = request->path ? strdup(request->path) : NULL;
    if ((request->name && !load->request.name) || (request->path && !load->request.path)) {
        free((char *)(uintptr_t)load->request.name);
        free((char *)(uintptr_t)load->request.path);
        free(load);
        return NULL;
    }
    load->server = server;
    load->began = uv_hrtime();
    load->detached = !request->wait;
    load->trace = request->trace ? trace_new(load->began) : NULL;
    load->consumer.use = load_use;
    load->job =
        (struct load_job){.path = load->request.path, .device = request->device, .form = request->form, .table_fd = -1};
    waiters_init(&load->waiters, load_deserted);
    TAILQ_INSERT_TAIL(&server->loads, load, link);
    server->n_loads++;
    server_job_begin(server);
    return load;
}

void load_begin(struct server *server, const struct load_request *request, struct call *call)
{
    struct load *load = load_new(server, request);
    if (!load) {
        for (size_t i = 0; i < request->n_fds; i++)
            close(request->fds[i]);
        if (call)
            call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        else
            request->done(request->context, NULL, "out of memory");
        return;
    }
    memcpy(load->job.fds, request->fds ? request->fds : load->job.fds, request->n_fds * sizeof(int));
    load->job.n_fds = request->n_fds;
    load->request.fds = NULL;
    if (call && !waiters_add(&load->waiters, call, request->wait ? WAIT_RESIDENT : WAIT_ALLOCATED)) {
        load_free(load);
        return;
    }
    load_queue(load, load_job_identify);
}

void load_restore(struct server *server, struct model *model, struct call *call, enum waiter_kind kind)
{
    assert(model->state == MODEL_CACHED || model->state == MODEL_SAVING);
    const struct load_request request = {.name = model->name,
                                         .form = model->form,
                                         .device = model->device,
                                         .uid = model->uid,
                                         .wait = true,
                                         .ttl = -1,
                                         .private = model->private};
    struct load *load = load_new(server, &request);
    if (!load) {
        call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        return;
    }
    if (!waiters_add(&load->waiters, call, kind)) {
        load_free(load);
        return;
    }
    if (model->state == MODEL_CACHED) {
        load_begin_restore(load, model);
        return;
    }
    load->awaited = model->id;
    load->blocked = true;
}

void load_wait(struct load *load, struct call *call, enum waiter_kind kind)
{
    (void)waiters_add(&load->waiters, call, kind);
}

void load_end(struct load *load, enum wire_error error, struct call *call)
{
    if (call && !waiters_add(&load->waiters, call, WAIT_END))
        return;
    failure_set(&load->failure, error, NULL);
    load_step(load);
}

void load_retry(struct load *load)
{
    if (!load->blocked || load->in_job || load_ends(load))
        return;
    load->blocked = false;
    load_queue(load, load_job_nothing); /* from the loop, not from within whoever is going */
}

void load_victim_gone(struct load *load)
{
    assert(load->n_victims > 0);
    load->n_victims--;
    if (load->n_victims == 0 && !load->in_job)
        load_queue(load, load_job_nothing);
}

uid_t load_uid(const struct load *load)
{
    return load->request.uid;
}

struct load *load_next(struct load *load)
{
    return TAILQ_NEXT(load, link);
}

bool load_ends(const struct load *load)
{
    return load->failure.error != WIRE_OK;
}
