#include "daemon/load/states.h"
#include "daemon/memory/device_choice.h"
#include "daemon/memory/survey.h"
#include "daemon/session/events.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <stdlib.h>

void load_note_free_memory(struct load *load)
{
    const struct device_set *among = &load->request.among;
    for (size_t i = 0; i < among->n; i++) {
        survey_note(among->devices[i], load->job.reach[i]);
        load->job.reach[i] = 0; /* note each answer only once: it is soon out of date */
    }
    load->asked = uv_hrtime();
}

/* --- the queue: loads that wait for memory, in the order in which they came --- */

/* Bytes on the device that queued loads before this one wait for; load NULL: all queued loads count. A load that may
 * go to several devices counts on each of them. */
static uint64_t bytes_ahead(const struct loads *loads, const struct load *load, const struct device *device)
{
    uint64_t bytes = 0;
    const struct load *other;
    TAILQ_FOREACH(other, &loads->list, link)
    {
        if (other == load)
            break;
        if (other->waits && device_set_has(&other->request.among, device))
            bytes += other->model->plan->arena_bytes;
    }
    return bytes;
}

/* The load's place in the queue, from 1. Only loads count that wait for one of the same devices. */
static unsigned place_of(const struct load *load)
{
    unsigned place = 1;
    const struct load *other;
    TAILQ_FOREACH(other, &load->loads->list, link)
    {
        if (other == load)
            break;
        place += other->waits && device_set_overlap(&other->request.among, &load->request.among);
    }
    return place;
}

static void tell_place(struct later *moving)
{
    const struct load *load = (struct load *)((char *)moving - offsetof(struct load, moving));
    events_emit(load->loads->events, "queued", load->model, NULL);
}

/* The load has got another place; 0: it is not queued any more. When one leaves the queue, all behind it move: that is
 * told later. */
static void set_place(struct load *load, unsigned place)
{
    struct laters *laters = &load->loads->core->laters;
    const bool joins = load->model->position == 0;
    load->model->position = place;
    if (place == 0)
        later_drop(laters, &load->moving);
    else if (joins)
        tell_place(&load->moving);
    else
        later_run(laters, &load->moving, tell_place);
}

/* A load joined the queue or left it. Updates `queued` of each device, and tells clients the new places. */
static void queue_changed(struct loads *loads)
{
    for (size_t i = 0; i < loads->devices->n; i++)
        loads->devices->devices[i]->queued = bytes_ahead(loads, NULL, loads->devices->devices[i]);
    struct load *load;
    TAILQ_FOREACH(load, &loads->list, link)
    {
        const bool queued = load->waits && load->model->state == MODEL_QUEUED;
        const unsigned place = queued ? place_of(load) : 0;
        if (load->model && load->model->load == load && load->model->position != place)
            set_place(load, place);
    }
}

uint64_t load_overhead(const struct model_header *header, const struct plan *plan)
{
    return model_header_memory(header) + header->header_bytes + plan_memory(plan) + manifest_memory(plan->manifest);
}

/* Adds `overhead` to the ledger, also for a load that only waits in the queue: a small file may have a large header. */
static void charge_overhead(struct load *load)
{
    if (load->overhead_charged || load->restores)
        return;
    load->overhead_charged = true;
    registry_charge(load->model, devices_host(load->loads->devices), load->overhead);
}

static void enter_queue(struct load *load, bool shown)
{
    charge_overhead(load);
    load->blocked = true;
    load->waits = true;
    if (shown) {
        load->was_queued = true;
        model_move(load->model, MODEL_QUEUED);
    }
    queue_changed(load->loads);
    load_report(load);
}

void load_leave_queue(struct load *load)
{
    if (!load->waits)
        return;
    load->waits = false;
    queue_changed(load->loads);
}

/* True if the load may wait in the queue, and waiting can help: one of its devices is large enough. */
static bool may_queue(const struct load *load)
{
    const struct device_set *among = &load->request.among;
    bool could = false;
    for (size_t i = 0; i < among->n; i++)
        could |= !among->devices[i]->failed && load->model->plan->arena_bytes <= among->devices[i]->budget;
    return could && uv_hrtime() < load->patience_ends;
}

/* --- taking memory --- */

/* Chooses the device, now that the size of the model is known. A cached model stays on its device. Returns
 * bytes_ahead() on this device. */
static uint64_t place(struct load *load)
{
    const struct device_set *among = &load->request.among;
    uint64_t ahead[DEVICES_MAX] = {0};
    for (size_t i = 0; i < among->n; i++)
        ahead[i] = bytes_ahead(load->loads, load, among->devices[i]);
    if (!load->restores) {
        load->device = device_choose(load->loads->residency, among, load->device, load->model->plan, ahead);
        load->model->device = load->job.device = load->device;
    }
    for (size_t i = 0; i < among->n; i++)
        if (among->devices[i] == load->device)
            return ahead[i];
    return 0;
}

static void fail_shortage(struct load *load, int error, uint64_t needed, const struct room_shortage *shortage)
{
    if (error == -EDQUOT)
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit("host-memory", shortage->available));
    else if (error == -ENOSPC)
        failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                    describe_out_of_memory(load->device, needed, shortage->available, shortage->evictable));
    else
        load_fail_memory(load);
}

/* Answers those who joined and may not wait any longer. Returns false if nobody is left for whom it would go on. */
static bool dismiss_impatient(struct load *load, uint64_t needed, const struct room_shortage *shortage)
{
    const uint64_t now = uv_hrtime();
    struct call *call;
    while ((call = waiters_take_impatient(&load->waiters, now)))
        call_fail(call, WIRE_OutOfDeviceMemory,
                  describe_out_of_memory(load->device, needed, shortage->available, shortage->evictable));
    return load->detached || !waiters_empty(&load->waiters);
}

/* Chooses the device, and says how much memory the load wants there. */
static struct admission_want want_of(struct load *load)
{
    const struct model *model = load->model;
    const uint64_t ahead = place(load);
    return (struct admission_want){
        .host = devices_host(load->loads->devices),
        .device = load->device,
        .bytes = model->plan->arena_bytes,
        .due = load->restores           ? 0
               : load->overhead_charged ? model->charged
                                        : registry_due(model, load->overhead),
        .charged = load->overhead_charged,
        .ahead = ahead,
    };
}

/* Enters the model's bytes into the ledger, or joins the queue, or fails. */
static void take(struct load *load)
{
    struct model *model = load->model;
    const struct admission_want want = want_of(load);
    const uint64_t more = want.bytes + (want.charged ? 0 : want.due);
    uint64_t limit;
    if (load->device->failed) {
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(load->device, "load"));
        return;
    }
    if (!load->restores && !quota_may_grow(&model->quota, more, &limit)) {
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit(quota_name(QUOTA_BYTES), limit));
        return;
    }
    struct room_shortage shortage;
    int r = residency_reserve(load->loads->residency, &load->claim, model, &want, &shortage);
    const uint64_t needed = device_is_host(want.device) ? more : want.bytes;
    if (r == -EAGAIN || (r == -ENOSPC && may_queue(load) && dismiss_impatient(load, needed, &shortage))) {
        enter_queue(load, r == -ENOSPC);
        return;
    }
    if (r < 0) {
        fail_shortage(load, r, needed, &shortage);
        return;
    }
    charge_overhead(load);
    load->reserved = true;
    load_leave_queue(load);
    loads_retry(load->loads); /* loads that wait for this one's choice of device, or behind it in the queue */
}

bool load_looked_again(struct load *load)
{
    struct load_job *job = &load->job;
    struct model *model = load->model;
    if (job->status == -ENOMEM)
        load_fail_memory(load);
    else if (job->status < 0)
        failure_set_file(&load->failure, job->status, &job->fault, model->source->path);
    else if (job->source) {
        const bool changed = model->changed; /* that its path leads to other files remains */
        model_set_source(model, job->source);
        model_set_changed(model, changed);
        job->source = NULL;
        job->opened = model->source;
    }
    return job->status == 0;
}

void load_reserve(struct load *load)
{
    if (!load->reserved)
        take(load);
    if (!load->reserved || load_ends(load) || load->claim.n_victims > 0)
        return;
    if (load->was_queued && !load->restores) {
        load->was_queued = false;
        load->job.opened = load->model->source;
        load->job.known = load->model->header;
        load_queue(load, load_job_look_again); /* nothing was read of them yet but the header */
        return;
    }
    load_show(load, LOAD_ALLOCATING, MODEL_ALLOCATING);
    load->job.planned = load->model->plan;
    load->job.pinned = load->model->cache_pinned;
    load_queue(load, load->restores ? load_job_reallocate : load_job_allocate);
    /* Slots are filled while memory is allocated: then the first copies need not wait for reading. */
    if (!load->restores && !load_creates(load) && !load->fills && load_fill_begin(load, load->model->plan) < 0)
        load_fail_memory(load);
}

bool load_reserve_now(struct load *load)
{
    if (!load->waits || load->in_job || load_ends(load))
        return false;
    const struct admission_want want = want_of(load);
    struct room_shortage unused;
    struct model **victims;
    size_t n;
    if (load->device->failed || admission_choose(load->loads->residency->registry, &want, &victims, &n, &unused) < 0)
        return false;
    free(victims);
    load->blocked = false;
    load_reserve(load);
    if (load_ends(load) && !load->in_job)
        load_queue(load, load_job_nothing); /* it ends from the loop, not in the middle of the caller's work */
    return true;
}

bool load_reserve_again(struct load *load)
{
    const uint64_t bytes = load->model->plan->arena_bytes, available = load->job.memory_free;
    const uint64_t needed = bytes > available ? bytes - available : 1;
    if (residency_make_room(load->loads->residency, &load->claim, load->device, needed) == 0)
        return false;
    load_move(load, LOAD_RESERVING); /* until the evicted models are gone */
    return true;
}
