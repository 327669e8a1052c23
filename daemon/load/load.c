#include "daemon/base/worker.h"
#include "daemon/load/creation.h"
#include "daemon/load/states.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/errors.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Processors that were idle need this time until they read at full speed: see docs/performance.md. */
#define WARM_NS 10000000u

static const struct state states[] = {
    [LOAD_IDENTIFYING] = {"identifying", STATE(LOAD_OPENING) | STATE(LOAD_RESERVING) | STATE(LOAD_DONE)},
    [LOAD_OPENING] = {"opening", STATE(LOAD_RESERVING) | STATE(LOAD_STOPPING)},
    [LOAD_RESERVING] = {"reserving", STATE(LOAD_ALLOCATING) | STATE(LOAD_STOPPING)},
    [LOAD_ALLOCATING] = {"allocating", STATE(LOAD_RESERVING) | STATE(LOAD_FILLING) | STATE(LOAD_STOPPING)},
    [LOAD_FILLING] = {"filling", STATE(LOAD_SEALING) | STATE(LOAD_STOPPING)},
    [LOAD_SEALING] = {"sealing", STATE(LOAD_DONE) | STATE(LOAD_STOPPING)},
    [LOAD_STOPPING] = {"stopping", STATE(LOAD_RELEASING) | STATE(LOAD_DONE)},
    [LOAD_RELEASING] = {"releasing", STATE(LOAD_DONE)},
    [LOAD_DONE] = {"done", 0},
};

const struct state_machine load_states = STATE_MACHINE(states);

void load_move(struct load *load, enum load_state state)
{
    state_move(&load_states, &load->state, state);
}

void load_show(struct load *load, enum load_state state, enum model_state shown)
{
    load_move(load, state);
    model_move(load->model, shown);
    load_report(load);
}

void load_fail_memory(struct load *load)
{
    failure_set(&load->failure, WIRE_LimitExceeded, error_no_memory());
}

void load_fail_out_of_memory(struct load *load, const struct model *model, uint64_t available)
{
    const uint64_t evictable = admission_evictable(load->loads->registry, model->device);
    failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                describe_out_of_memory(model->device, model->plan->arena_bytes, available, evictable));
}

void load_fail_device(struct load *load, int error, const struct device_fault *fault)
{
    failure_set_device(&load->failure, error, fault);
    if (error == -ENODEV)
        residency_lose_device(load->loads->residency, load->device);
}

void load_finish(struct load *load)
{
    load_move(load, LOAD_DONE);
    if (load->failure.error == WIRE_OK) {
        load_drop_cached(load);
        load_succeed(load);
    } else
        load_give_up(load);
    load_free(load);
}

/* --- jobs on a worker --- */

static void load_job_work(struct work *work)
{
    struct load *load = work->data;
    struct load_job *job = &load->job;
    worker_step_back();
    job->begin_ns = uv_hrtime();
    job->run(job);
    job->end_ns = uv_hrtime();
}

static void load_job_done(struct work *work)
{
    struct load *load = work->data;
    load->in_job = false;
    trace_add(load->trace, TRACE_LOAD, 0, load_job_name(&load->job), load->job.begin_ns, load->job.end_ns);
    load_step(load);
}

void load_queue(struct load *load, void (*run)(struct load_job *job))
{
    assert(!load->in_job);
    load->job.run = run;
    load->job.status = 0;
    load->in_job = true;
    core_keep_awake(load->loads->core);
    struct workers *workers = load->loads->core->queue;
    if (!load_job_uses_files(&load->job)) {
        worker_queue(workers, &load->job.work, load, load_job_work, load_job_done);
        return;
    }
    const struct source *source = load->model ? load->model->source : load->job.source;
    const struct work_reads reads =
        source ? source_reads(source, load->request.uid) : (struct work_reads){.uid = load->request.uid};
    worker_queue_reading(workers, &load->job.work, &reads, load, load_job_work, load_job_done);
}

/* --- the states --- */

static void load_opened(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    load->phases.parse_ns = job->elapsed_ns;
    if (load_creates(load) && !creation_opened(load))
        return;
    if (job->status < 0) {
        failure_set_opening(&load->failure, job);
        return;
    }
    load_note_free_memory(load);
    if (!load_creates(load)) {
        if (job->sorted) {
            const bool changed = model->changed;
            model_set_source(model, job->sorted);
            model_set_changed(model, changed);
            job->sorted = NULL;
        }
        model->header = job->header;
        model->plan = job->plan;
        job->header = NULL;
        job->plan = NULL;
    }
    load->overhead = load_overhead(model->header, model->plan);
    loads_retry(load->loads); /* another load may wait to compare its plan with this one */
    load_move(load, LOAD_RESERVING);
    load_reserve(load);
}

static void load_filled_all(struct load *load)
{
    load_fill_end(load);
    load_show(load, LOAD_SEALING, MODEL_SEALING);
    /* A lease is granted only to users who may read the files now. Their rights may have changed since the opening. */
    access_facts_unref(load->job.facts);
    load->job.facts = NULL;
    load->job.before = access_facts_ref(load->model->facts);
    load->job.judged = load->model->source;
    load_queue(load, load_job_seal);
}

/* Queues the job that publishes the model, beside the fills. Not at the very beginning of filling: there all workers
 * are needed to read, because the copies to the device wait for them. */
static void load_publish(struct load *load)
{
    if (load->next_chunk < load->plan->n_chunks / 4 && uv_hrtime() - load->filling < WARM_NS)
        return;
    struct load_job *job = &load->job;
    load->publish_begun = true;
    job->opened = load->restores ? NULL : load->model->source;
    job->planned = load->model->plan;
    job->filled = load->model->arena;
    load_queue(load, load_job_publish);
}

static void load_allocated(struct load *load)
{
    struct load_job *job = &load->job;
    load->model->arena = job->arena;
    load->model->arena_own = true;
    job->arena = NULL;
    load->phases.allocate_ns = job->elapsed_ns;
    if (job->status < 0 && job->of_host)
        load_fail_memory(load);
    else if (job->status == -ENOMEM && load_reserve_again(load))
        return;
    else if (job->status == -ENOMEM)
        load_fail_out_of_memory(load, load->model, job->memory_free);
    else if (job->status < 0)
        load_fail_device(load, job->status, &job->fault);
    else if (load->restores && load_fill_begin(load, job->plan) < 0)
        load_fail_memory(load);
    if (load->failure.error != WIRE_OK)
        return;
    load_show(load, LOAD_FILLING, MODEL_FILLING);
    if (load_creates(load)) {
        creation_allocated(load);
        return;
    }
    struct call *call;
    while ((call = waiters_take(&load->waiters, WAIT_ALLOCATED)))
        call_reply(call, describe_loaded(load->model, NULL, conn_peer(call->conn)), NULL, 0);
    load_fill_continue(load);
    load_publish(load);
}

static void load_published(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    load->publish_done = true;
    if (job->status < 0 && job->of_host) {
        load_fail_memory(load);
        return;
    }
    if (job->status < 0) {
        load_fail_device(load, job->status, &job->fault);
        return;
    }
    model->export = job->export;
    if (load->restores)
        return;
    model->published = job->published;
    job->published = PUBLICATION_NONE;
    registry_charge(model, devices_host(load->loads->devices), model->published.bytes - model->header->header_bytes);
}

static void load_sealed(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    if (load->device->failed) { /* it failed after this load's last operation on it */
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(load->device, "load"));
        return;
    }
    if (job->status < 0 && job->of_file)
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    else if (job->status < 0)
        load_fail_device(load, job->status, &job->fault);
    else {
        events_set_facts(load->loads->events, model, job->facts);
        job->facts = NULL;
    }
}

/* Begins nothing more. When no fill and no eviction is under way, frees the memory. */
static void load_stop(struct load *load)
{
    if (load->state != LOAD_STOPPING) {
        load_leave_queue(load);
        load_fill_end(load);
        load_show(load, LOAD_STOPPING, MODEL_UNLOADING);
    }
    if (load->n_fills > 0 || load->claim.n_victims > 0)
        return;
    if (load->job.arena) { /* the load was cancelled while the arena was allocated */
        load->model->arena = load->job.arena;
        load->job.arena = NULL;
    }
    if (!load->model->arena) {
        load_finish(load);
        return;
    }
    load_move(load, LOAD_RELEASING);
    load->job.planned = load->model->plan;
    load->job.filled = load->model->arena;
    load_queue(load, load_job_release);
}

/* A job or a fill is over: does the next thing in this state. Returns true if the load is over and was freed. */
static bool load_advance(struct load *load)
{
    switch (load->state) {
    case LOAD_IDENTIFYING:
        return load_identified(load);
    case LOAD_OPENING:
        load_opened(load);
        break;
    case LOAD_RESERVING:
        if (load->job.run == load_job_look_again && !load_looked_again(load))
            break;
        load_note_free_memory(load);
        load_reserve(load);
        break;
    case LOAD_ALLOCATING:
        load_allocated(load);
        break;
    case LOAD_FILLING:
        if (load_creates(load))
            return creation_advance(load);
        if (!load->publish_begun) {
            load_publish(load);
            break;
        }
        if (!load->publish_done)
            load_published(load);
        if (load->failure.error != WIRE_OK)
            break;
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

void load_step(struct load *load)
{
    if (!load->in_job && !load_ends(load) && load_advance(load))
        return;
    if (!load_ends(load))
        return;
    if (load->model)
        load->model->departs = true;
    load_drop_comparison(load);
    if (load_held_up(load) || (load->device && atomic_load(&load->device->hung)))
        load_answer(load);
    if (load->in_job)
        return; /* load_job_done() calls this again */
    if (load->state == LOAD_RELEASING) {
        load->model->arena = NULL;
        load->model->export = (struct device_export){.fd = -1};
        load_finish(load);
    } else if (load->state == LOAD_IDENTIFYING)
        load_finish(load);
    else
        load_stop(load);
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

bool load_ends(const struct load *load)
{
    return load->failure.error != WIRE_OK;
}
