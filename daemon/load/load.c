#include "daemon/base/seconds.h"
#include "daemon/base/trust.h"
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

/* A queued load asks the drivers again after this time, even if no model was unloaded: other processes may have freed
 * memory. */
#define ASK_AGAIN_NS 1000000000u

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

/* Frees what request_copy() made. */
static void request_clear(struct load_request *request)
{
    creation_free(request->creation);
    forms_unref(request->forms);
    layout_unref(request->layout);
    peer_unref(request->peer);
    free((char *)(uintptr_t)request->name);
    free((char *)(uintptr_t)request->path);
}

void load_free(struct load *load)
{
    assert(waiters_empty(&load->waiters) && load->n_fills == 0 && load->claim.n_victims == 0 && !load->in_job);
    struct loads *loads = load->loads;
    TAILQ_REMOVE(&loads->list, load, link);
    loads->n--;
    quota_return(&load->charge);
    failure_clear(&load->failure);
    load_job_clear(&load->job);
    free(load->fills);
    cold_free(load->cold);
    trace_free(load->trace);
    request_clear(&load->request);
    free(load);
    core_changed(loads->core);
    core_job_end(loads->core);
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
        model->header = job->header;
        model->plan = job->plan;
        job->header = NULL;
        job->plan = NULL;
    }
    load->kept = load_keeps(model->header, model->plan);
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
        call_reply(call, describe_loaded(load->model, NULL), NULL, 0);
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

static void load_granted(struct claim *claim)
{
    struct load *load = (struct load *)((char *)claim - offsetof(struct load, claim));
    if (!load->in_job)
        load_queue(load, load_job_nothing);
}

/* Lets the load wait in the queue for this time from now, unless it may already wait longer. */
static void load_be_patient(struct load *load, double seconds)
{
    const uint64_t ends = uv_hrtime() + seconds_to_ns(seconds);
    if (seconds > 0 && load->patience_ends < ends)
        load->patience_ends = ends;
}

/* Copies the request, with copies of its strings and references of its own. After -ENOMEM too the caller ends the copy
 * with request_clear(). */
static int request_copy(struct load_request *copy, const struct load_request *request)
{
    *copy = *request;
    copy->fds = NULL;
    copy->creation = NULL; /* load_new() takes it over in the end */
    copy->forms = forms_ref(request->forms);
    copy->layout = layout_ref(request->layout);
    copy->peer = peer_ref(request->peer);
    copy->name = request->name ? strdup(request->name) : NULL;
    copy->path = request->path ? strdup(request->path) : NULL;
    return (request->name && !copy->name) || (request->path && !copy->path) ? -ENOMEM : 0;
}

/* Makes a load that has only its request. -EDQUOT, and the limit, if its user has too many loads; -ENOMEM. */
static int load_new(struct loads *loads, const struct load_request *request, struct load **ret, uint64_t *ret_limit)
{
    struct load *load = calloc(1, sizeof(*load));
    if (!load)
        return -ENOMEM;
    int r = request_copy(&load->request, request);
    if (r == 0)
        r = quota_take(loads->quota, request->uid, QUOTA_LOADS, 1, &load->charge, ret_limit);
    if (r < 0) {
        request_clear(&load->request);
        free(load);
        return r;
    }
    load->loads = loads;
    load->request.creation = request->creation;
    load->claim.granted = load_granted;
    load->began = uv_hrtime();
    load->detached = !request->wait;
    load_be_patient(load, request->wait_for_memory);
    load->trace = request->trace ? trace_new(load->began) : NULL;
    load->job = (struct load_job){
        .closer = loads->core->closer,
        .uid = request->uid,
        .path = load->request.path,
        .trusted = request->trusted,
        .forms = request->forms,
        .layout = request->layout,
        .published = PUBLICATION_NONE,
    };
    waiters_init(&load->waiters, load_deserted);
    TAILQ_INSERT_TAIL(&loads->list, load, link);
    loads->n++;
    core_job_begin(loads->core);
    *ret = load;
    return 0;
}

void load_begin(struct loads *loads, const struct load_request *request, struct call *call)
{
    struct load *load;
    uint64_t limit = 0;
    int r = load_new(loads, request, &load, &limit);
    if (r < 0) {
        for (size_t i = 0; i < request->n_fds; i++)
            closer_close(loads->core->closer, request->uid, request->fds[i]);
        creation_free(request->creation);
        if (call)
            call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_LOADS, limit));
        else
            request->done(request->context, NULL, "out of memory");
        return;
    }
    if (request->fds)
        memcpy(load->job.fds, request->fds, request->n_fds * sizeof(int));
    load->job.n_fds = request->n_fds;
    const enum waiter_kind kind = request->creation ? WAIT_CREATE
                                  : request->lease  ? WAIT_LEASE
                                  : request->wait   ? WAIT_RESIDENT
                                                    : WAIT_ALLOCATED;
    if (call && !waiters_add(&load->waiters, call, kind)) {
        load_free(load);
        return;
    }
    waiters_set_patience(&load->waiters, load->patience_ends);
    load_queue(load, request->creation ? load_job_no_source : load_job_identify);
}

void load_restore(struct loads *loads, struct model *model, struct call *call, enum waiter_kind kind)
{
    assert(model->state == MODEL_CACHED || model->state == MODEL_SAVING);
    const struct load_request request = {.forms = model->forms,
                                         .layout = model->layout,
                                         .among = {.devices = {model->device}, .n = 1},
                                         .peer = conn_peer(call->conn),
                                         .uid = conn_uid(call->conn),
                                         .wait = true,
                                         .ttl = -1,
                                         .access = model->access};
    struct load *load;
    uint64_t limit = 0;
    int r = load_new(loads, &request, &load, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_LOADS, limit));
        return;
    }
    if (!waiters_add(&load->waiters, call, kind)) {
        load_free(load);
        return;
    }
    if (model->state == MODEL_CACHED && !model_in_use(model)) {
        load_begin_restore(load, model);
        return;
    }
    load->awaited = model->id;
    strcpy(load->awaited_name, model->name);
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

/* Lets a blocked load check again. It does so later, from the loop, not in the middle of the caller's work. */
static void load_retry(struct load *load)
{
    if (!load->blocked || load->in_job || load_ends(load))
        return;
    load->blocked = false;
    load_queue(load, load->state == LOAD_RESERVING ? load_job_ask : load_job_nothing);
}

void loads_init(struct loads *loads)
{
    TAILQ_INIT(&loads->list);
}

void loads_retry(struct loads *loads)
{
    struct load *load;
    TAILQ_FOREACH(load, &loads->list, link)
    {
        /* The queued load takes the memory now. Else a client that detaches and attaches again would keep it. */
        if (!load_reserve_now(load))
            load_retry(load);
    }
}

void loads_report(struct loads *loads)
{
    struct load *load;
    const uint64_t now = uv_hrtime();
    TAILQ_FOREACH(load, &loads->list, link)
    {
        load_report(load);
        const bool over = load->patience_ends > 0 && now > load->patience_ends;
        if (load->waits && (over || now - load->asked > ASK_AGAIN_NS || waiters_impatient(&load->waiters, now)))
            load_retry(load);
        else if (load->behind && over)
            load_retry(load);
    }
}

bool loads_hang(const struct loads *loads, const struct device *device, uint64_t begun_before)
{
    const struct load *load;
    TAILQ_FOREACH(load, &loads->list, link)
    {
        if (load->device == device && load_hangs(load, begun_before))
            return true;
    }
    return false;
}

static bool asks(const struct load *load, const struct device *device)
{
    return load->in_job && (load->job.run == load_job_ask || load->job.run == load_job_manifest) &&
           device_set_has(&load->request.among, device);
}

void loads_lose_device(struct loads *loads, struct device *device)
{
    struct load *next;
    for (struct load *load = TAILQ_FIRST(&loads->list); load; load = next) {
        next = TAILQ_NEXT(load, link);
        if (load->device != device && !asks(load, device))
            continue;
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(device, "load"));
        load_step(load);
    }
}

void loads_end(struct loads *loads, enum wire_error error)
{
    struct load *next;
    for (struct load *load = TAILQ_FIRST(&loads->list); load; load = next) {
        next = TAILQ_NEXT(load, link);
        load_end(load, error, NULL);
    }
}

size_t loads_seen(const struct loads *loads, const struct peer *peer)
{
    size_t n = 0;
    const struct load *load;
    TAILQ_FOREACH(load, &loads->list, link)
    {
        n += load->request.uid == peer->uid || trusted_user(peer->uid) ||
             (load->model && model_visible(load->model, peer));
    }
    return n;
}

bool load_ends(const struct load *load)
{
    return load->failure.error != WIRE_OK;
}
