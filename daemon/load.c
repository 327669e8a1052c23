#include "daemon/load.h"

#include "daemon/describe.h"
#include "daemon/failure.h"
#include "daemon/fill.h"
#include "daemon/load_job.h"
#include "daemon/log.h"
#include "daemon/server.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum load_state {
    LOAD_IDENTIFYING,
    LOAD_OPENING,
    LOAD_ALLOCATING,
    LOAD_FILLING,
    LOAD_SEALING,
    LOAD_STOPPING,
    LOAD_RELEASING,
    LOAD_DONE,
};

/* The states that may follow each. */
static const unsigned transitions[] = {
    [LOAD_IDENTIFYING] = 1u << LOAD_OPENING | 1u << LOAD_STOPPING | 1u << LOAD_DONE,
    [LOAD_OPENING] = 1u << LOAD_ALLOCATING | 1u << LOAD_STOPPING,
    [LOAD_ALLOCATING] = 1u << LOAD_FILLING | 1u << LOAD_STOPPING,
    [LOAD_FILLING] = 1u << LOAD_SEALING | 1u << LOAD_STOPPING,
    [LOAD_SEALING] = 1u << LOAD_DONE | 1u << LOAD_STOPPING,
    [LOAD_STOPPING] = 1u << LOAD_RELEASING | 1u << LOAD_DONE,
    [LOAD_RELEASING] = 1u << LOAD_DONE,
    [LOAD_DONE] = 0,
};

/* What a call waits for. */
enum waiter_kind {
    WAIT_RESIDENT,
    WAIT_ALLOCATED, /* the file was understood, and its memory taken */
    WAIT_END,       /* it asked for the load's end, and is content with it */
};

struct waiter {
    struct call *call;
    struct load *load;
    enum waiter_kind kind;
    TAILQ_ENTRY(waiter) link;
};

struct load {
    TAILQ_ENTRY(load) link;
    struct server *server;
    enum load_state state;
    struct model *model; /* NULL before it was identified */
    struct device *device;
    enum form form;
    bool decode_on_cpu;
    bool trusted;
    uid_t uid;
    char *name;   /* NULL: from the file's */
    char *path;   /* NULL: by descriptor */
    bool blocked; /* until the model that has its name, or its file, is gone */

    TAILQ_HEAD(, waiter) waiters;
    bool detached; /* goes on when nobody waits */
    struct failure failure;

    struct load_job job; /* the worker's while in_job */
    bool in_job;

    struct consumer consumer;
    size_t next_chunk;
    struct fill *fills; /* one for each slot of the device */
    size_t n_fills;     /* under way */
    uint64_t filled_bytes;
    uint64_t began;   /* uv_hrtime() of the request */
    uint64_t filling; /* and of the first fill */
    struct load_phases phases;
};

static void load_step(struct load *load);

static void load_move(struct load *load, enum load_state state)
{
    assert(transitions[load->state] & 1u << state);
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
    assert(TAILQ_EMPTY(&load->waiters) && load->n_fills == 0 && !load->in_job);
    struct server *server = load->server;
    TAILQ_REMOVE(&server->loads, load, link);
    server->n_loads--;
    failure_clear(&load->failure);
    load_job_clear(&load->job);
    free(load->fills);
    free(load->name);
    free(load->path);
    free(load);
    server_changed(server);
    server_job_end(server);
}

/* --- those who wait --- */

static void waiter_free(struct waiter *waiter)
{
    TAILQ_REMOVE(&waiter->load->waiters, waiter, link);
    free(waiter);
}

static void waiter_abandoned(struct call *call)
{
    struct waiter *waiter = call->context;
    struct load *load = waiter->load;
    waiter_free(waiter);
    if (TAILQ_EMPTY(&load->waiters) && !load->detached) {
        failure_set(&load->failure, WIRE_Cancelled, NULL);
        load_step(load);
    }
}

static bool waiter_add(struct load *load, struct call *call, enum waiter_kind kind)
{
    struct waiter *waiter = calloc(1, sizeof(*waiter));
    if (!waiter) {
        call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        return false;
    }
    waiter->call = call;
    waiter->load = load;
    waiter->kind = kind;
    call->context = waiter;
    call->abandoned = waiter_abandoned;
    TAILQ_INSERT_TAIL(&load->waiters, waiter, link);
    return true;
}

/* Answers those who wait for this kind of news. */
static void waiters_reply(struct load *load, enum waiter_kind kind)
{
    struct waiter *waiter, *next;
    for (waiter = TAILQ_FIRST(&load->waiters); waiter; waiter = next) {
        next = TAILQ_NEXT(waiter, link);
        if (waiter->kind != kind)
            continue;
        struct call *call = waiter->call;
        waiter_free(waiter);
        call_reply(call, describe_loaded(load->model, load->phases.total_ns ? &load->phases : NULL), NULL, 0);
    }
}

static void waiters_fail(struct load *load)
{
    struct waiter *waiter;
    while ((waiter = TAILQ_FIRST(&load->waiters))) {
        struct call *call = waiter->call;
        bool content = waiter->kind == WAIT_END && load->failure.error == WIRE_Cancelled;
        waiter_free(waiter);
        if (content)
            call_reply(call, NULL, NULL, 0);
        else
            call_fail(call, load->failure.error, failure_parameters(&load->failure));
    }
}

void load_progress(const struct load *load, struct load_progress *ret)
{
    *ret = (struct load_progress){.done = load->filled_bytes};
    if (load->model && load->model->plan)
        ret->total = load->model->plan->model_bytes;
    if (load->filling)
        ret->elapsed_ns = uv_hrtime() - load->filling;
}

void load_report(struct load *load)
{
    if (!load->model)
        return;
    struct waiter *waiter;
    TAILQ_FOREACH(waiter, &load->waiters, link)
    {
        if (waiter->call->more && waiter->kind != WAIT_END)
            (void)call_continue(waiter->call, describe_loading(load->model, load));
    }
}

/* --- the end --- */

static void load_finish(struct load *load)
{
    struct model *model = load->model;
    struct server *server = load->server;
    load_move(load, LOAD_DONE);
    if (load->failure.error == WIRE_OK) {
        model->load = NULL;
        model->state = MODEL_RESIDENT;
        model->idle_since = uv_hrtime();
        load->phases.total_ns = uv_hrtime() - load->began;
        log_info("model=%s id=%" PRIu64 " resident on %s: %" PRIu64 " bytes in %.3f s", model->name, model->id,
                 model->device->id, model->plan->arena_bytes, (double)load->phases.total_ns / 1e9);
        events_emit(server->events, "resident", model, NULL);
        waiters_reply(load, WAIT_RESIDENT);
        failure_set(&load->failure, WIRE_ModelBusy, describe_busy(model)); /* too late to be cancelled */
        waiters_fail(load);
        load_free(load);
        return;
    }
    char text[512];
    failure_text(&load->failure, text, sizeof(text));
    if (model) {
        log_notice("model=%s id=%" PRIu64 " not loaded: %s", model->name, model->id, text);
        events_emit(server->events, load->failure.error == WIRE_Cancelled ? "cancelled" : "failed", model, text);
        registry_release(model);
        model->load = NULL;
        registry_remove(&server->registry, model);
        load->model = NULL;
        server_loads_retry(server);
    } else
        log_notice("uid=%u load refused: %s", (unsigned)load->uid, text);
    waiters_fail(load);
    load_free(load);
}

/* --- jobs on a worker --- */

static void load_job_work(uv_work_t *work)
{
    struct load_job *job = work->data;
    job->run(job);
}

static void load_job_done(uv_work_t *work, int status)
{
    (void)status;
    struct load *load = (struct load *)((char *)work->data - offsetof(struct load, job));
    load->in_job = false;
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
}

/* --- filling --- */

static void load_filled(struct fill *fill)
{
    struct load *load = fill->context;
    struct slot *slot = fill->slot;
    load->n_fills--;
    if (fill->status == 0) {
        load->filled_bytes += fill->chunk->model_bytes;
        load->model->overflows += fill->overflows;
        load->phases.read_ns += fill->read_ns;
        load->phases.decode_ns += fill->decode_ns;
        load->phases.copy_ns += fill->transfer.copy_ns;
        load->phases.kernel_ns += fill->transfer.kernel_ns;
    } else if (fill->of_file)
        failure_set_file(&load->failure, fill->status, &fill->fault, load->model->source->path);
    else if (fill->status == -ENOMEM)
        failure_set(
            &load->failure, WIRE_OutOfDeviceMemory,
            describe_out_of_memory(load->device, load->model->plan->arena_bytes, device_available(load->device)));
    else {
        failure_set_device(&load->failure, fill->status, &fill->fault);
        if (fill->status == -ENODEV)
            server_device_failed(load->server, load->device);
    }
    struct server *server = load->server;
    load_step(load); /* may free the load */
    scheduler_give(server_scheduler(server, slot->device), slot);
}

/* The scheduler has a slot for us. */
static uint64_t load_use(struct consumer *consumer, struct slot *slot)
{
    struct load *load = (struct load *)((char *)consumer - offsetof(struct load, consumer));
    const struct plan *plan = load->model->plan;
    if (load->next_chunk == plan->n_chunks)
        return 0;
    struct fill *fill = &load->fills[slot->index];
    const struct chunk *chunk = &plan->chunks[load->next_chunk++];
    *fill = (struct fill){
        .source = load->model->source,
        .plan = plan,
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

/* Somebody else loads this file, or has: those who wait for this load wait for that, and this one is over. */
static void load_join(struct load *load, struct model *model)
{
    struct load *other = model->load;
    struct waiter *waiter;
    while ((waiter = TAILQ_FIRST(&load->waiters))) {
        if (other && (other->state < LOAD_FILLING || waiter->kind == WAIT_RESIDENT)) {
            TAILQ_REMOVE(&load->waiters, waiter, link);
            waiter->load = other;
            TAILQ_INSERT_TAIL(&other->waiters, waiter, link);
            continue;
        }
        struct call *call = waiter->call;
        waiter_free(waiter);
        call_reply(call, describe_loaded(model, NULL), NULL, 0);
    }
    if (other)
        other->detached |= load->detached;
    load_move(load, LOAD_DONE);
    load_free(load);
}

/* Returns true if the load is over: joined to another. */
static bool load_identified(struct load *load)
{
    struct server *server = load->server;
    struct load_job *job = &load->job;
    if (job->status < 0) {
        failure_set_file(&load->failure, job->status, &job->fault, load->path);
        return false;
    }
    if (load->path && !load->trusted && !job->source->readable_by_all) {
        failure_set(&load->failure, WIRE_PermissionDenied,
                    describe_reason("not everyone may read this file: pass it as a descriptor"));
        return false;
    }
    if (load->device->failed) {
        failure_set(&load->failure, WIRE_DeviceNotFound, describe_device_name(load->device->id));
        return false;
    }
    struct model *model = registry_find_file(&server->registry, &job->source->identity, load->form, load->device);
    if (model && !model_departs(model)) {
        load_join(load, model);
        return true;
    }
    char derived[MODEL_NAME_MAX + 1];
    if (!load->name)
        model_name_derive(job->source->path, derived);
    const char *name = load->name ? load->name : derived;
    model = registry_find(&server->registry, name);
    if (model && model_departs(model)) {
        load->blocked = true;
        return false;
    }
    if (model) {
        failure_set(&load->failure, WIRE_NameInUse, describe_name(name));
        return false;
    }
    model = calloc(1, sizeof(*model));
    if (!model) {
        failure_set(&load->failure, WIRE_LimitExceeded, describe_limit("memory", 0));
        return false;
    }
    strcpy(model->name, name);
    model->form = load->form;
    model->device = load->device;
    model->uid = load->uid;
    model->source = job->source;
    job->source = NULL;
    model->table_fd = -1;
    model->export.fd = -1;
    model->load = load;
    LIST_INIT(&model->leases);
    load->model = model;
    registry_add(&server->registry, model);
    load_show(load, LOAD_OPENING, MODEL_OPENING);
    events_emit(server->events, "loading", model, NULL);
    job->opened = model->source;
    load_queue(load, load_job_open);
    return false;
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
    if (job->status == -EBADMSG)
        failure_set_invalid(&load->failure, job->gguf_fault.reason, job->gguf_fault.offset);
    else if (job->status == -ENOTSUP) {
        const struct gguf_tensor *tensor = &model->header->tensors[job->tensor];
        failure_set(&load->failure, WIRE_UnsupportedType, describe_unsupported(tensor));
    } else if (job->status == -EOVERFLOW)
        failure_set_invalid(&load->failure, "the tensors together are larger than any memory", 0);
    else if (job->status == -ENODATA)
        failure_set_file(&load->failure, -ESTALE, &job->fault, model->source->path);
    else if (job->status == -ENOMEM)
        failure_set(&load->failure, WIRE_LimitExceeded, describe_limit("memory", 0));
    else if (job->status < 0)
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    if (job->status < 0)
        return;

    uint64_t available = 0;
    if (registry_reserve(model, model->plan->arena_bytes, &available) < 0)
        failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                    describe_out_of_memory(load->device, model->plan->arena_bytes, available));
    if (load->failure.error != WIRE_OK)
        return;
    load_show(load, LOAD_ALLOCATING, MODEL_ALLOCATING);
    job->planned = model->plan;
    job->decode_on_cpu = load->decode_on_cpu;
    load_queue(load, load_job_allocate);
}

static void load_filled_all(struct load *load)
{
    scheduler_remove(server_scheduler(load->server, load->device), &load->consumer);
    load_show(load, LOAD_SEALING, MODEL_SEALING);
    load->job.opened = load->model->source;
    load->job.planned = load->model->plan;
    load->job.filled = load->model->arena;
    load_queue(load, load_job_seal);
}

static void load_allocated(struct load *load)
{
    struct load_job *job = &load->job;
    load->model->arena = job->arena;
    job->arena = NULL;
    load->phases.allocate_ns = job->elapsed_ns;
    if (job->status == -ENOMEM)
        failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                    describe_out_of_memory(load->device, load->model->plan->arena_bytes, job->memory_free));
    else if (job->status < 0)
        failure_set_device(&load->failure, job->status, &job->fault);
    if (job->status == -ENODEV)
        server_device_failed(load->server, load->device);
    if (load->failure.error != WIRE_OK)
        return;
    load->fills = calloc(staging_slots(load->device->staging), sizeof(*load->fills));
    if (!load->fills) {
        failure_set(&load->failure, WIRE_LimitExceeded, describe_limit("memory", 0));
        return;
    }
    load->filling = uv_hrtime();
    load_show(load, LOAD_FILLING, MODEL_FILLING);
    waiters_reply(load, WAIT_ALLOCATED);
    scheduler_add(server_scheduler(load->server, load->device), &load->consumer);
    if (load->model->plan->n_chunks == 0)
        load_filled_all(load);
}

/* Returns true if the load is over. */
static bool load_sealed(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    if (job->status == -ESTALE)
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    else if (job->status < 0)
        failure_set_device(&load->failure, job->status, &job->fault);
    if (job->status == -ENODEV)
        server_device_failed(load->server, load->device);
    if (load->failure.error != WIRE_OK)
        return false;
    model->export = job->export;
    model->table_fd = job->table_fd;
    job->table_fd = -1;
    load_finish(load);
    return true;
}

/* Nothing more is begun; when nothing is under way, the memory is released. */
static void load_stop(struct load *load)
{
    if (load->state != LOAD_STOPPING) {
        scheduler_remove(server_scheduler(load->server, load->device), &load->consumer);
        load_show(load, LOAD_STOPPING, MODEL_UNLOADING);
    }
    if (load->n_fills > 0)
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

/* Moves a load on: called whenever something that it may wait for is over. May free it. */
static void load_step(struct load *load)
{
    if (load->in_job)
        return; /* it comes back here */
    if (load->failure.error == WIRE_OK) {
        switch (load->state) {
        case LOAD_IDENTIFYING:
            if (load_identified(load))
                return;
            break;
        case LOAD_OPENING:
            load_opened(load);
            break;
        case LOAD_ALLOCATING:
            load_allocated(load);
            break;
        case LOAD_FILLING:
            if (load->next_chunk == load->model->plan->n_chunks && load->n_fills == 0)
                load_filled_all(load);
            break;
        case LOAD_SEALING:
            if (load_sealed(load))
                return;
            break;
        case LOAD_STOPPING:
        case LOAD_RELEASING:
        case LOAD_DONE:
            assert(!"a load that stops has failed");
        }
    }
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

void load_begin(struct server *server, const struct load_request *request, struct call *call)
{
    struct load *load = calloc(1, sizeof(*load));
    if (load) {
        load->name = request->name ? strdup(request->name) : NULL;
        load->path = request->path ? strdup(request->path) : NULL;
    }
    if (!load || (request->name && !load->name) || (request->path && !load->path)) {
        if (load) {
            free(load->name);
            free(load->path);
            free(load);
        }
        if (request->fd >= 0)
            close(request->fd);
        call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        return;
    }
    load->server = server;
    load->began = uv_hrtime();
    load->device = request->device;
    load->form = request->form;
    load->decode_on_cpu = request->decode_on_cpu;
    load->trusted = request->trusted;
    load->uid = request->uid;
    load->detached = !request->wait;
    load->consumer.use = load_use;
    load->job = (struct load_job){
        .fd = request->fd, .path = load->path, .device = load->device, .form = load->form, .table_fd = -1};
    TAILQ_INIT(&load->waiters);
    TAILQ_INSERT_TAIL(&server->loads, load, link);
    server->n_loads++;
    server_job_begin(server);
    if (!waiter_add(load, call, request->wait ? WAIT_RESIDENT : WAIT_ALLOCATED)) {
        load_free(load);
        return;
    }
    load_queue(load, load_job_identify);
}

void load_end(struct load *load, enum wire_error error, struct call *call)
{
    if (call && !waiter_add(load, call, WAIT_END))
        return;
    failure_set(&load->failure, error, NULL);
    load_step(load);
}

void load_retry(struct load *load)
{
    if (!load->blocked)
        return;
    load->blocked = false;
    load_queue(load, load_job_nothing); /* from the loop, not from within whoever is going */
}

struct load *load_next(struct load *load)
{
    return TAILQ_NEXT(load, link);
}

bool load_ends(const struct load *load)
{
    return load->failure.error != WIRE_OK;
}
