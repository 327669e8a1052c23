#include "daemon/device/staging.h"
#include "daemon/load/states.h"
#include "daemon/memory/residency.h"
#include "daemon/session/describe.h"
#include "daemon/wire/errors.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* The last chunks of a plan, whose bytes stay in the processors' caches because few bytes follow. Three: the last one
 * may have only a few bytes, and the caches of all cores together hold more than one. */
#define CHUNKS_LAST 3u

static void load_count_share(struct load *load, const struct fill_share *share)
{
    if (share->end_ns == share->begin_ns)
        return; /* other workers had taken all parts */
    load->phases.read_ns += share->count.read_ns;
    load->phases.decode_ns += share->count.decode_ns;
    const uint64_t read_end_ns = share->begin_ns + share->count.read_ns;
    trace_add(load->trace, TRACE_WORKER, share->worker, "read", share->begin_ns, read_end_ns);
    if (share->count.decode_ns > 0)
        trace_add(load->trace, TRACE_WORKER, share->worker, "dequantise", read_end_ns, share->end_ns);
}

/* Past the page cache no worker reads: such a time counts as if one had read then. */
static void load_count_direct(struct load *load, const struct fill *fill)
{
    if (fill->direct_end_ns == 0)
        return;
    load->phases.read_ns += fill->direct_end_ns - fill->direct_begin_ns;
    trace_add(load->trace, TRACE_WORKER, fill->workers + fill->slot->index, "read", fill->direct_begin_ns,
              fill->direct_end_ns);
}

static void load_trace_transfer(struct load *load, const struct transfer *transfer)
{
    trace_add(load->trace, TRACE_STREAM, 0, "copy", transfer->begin_ns, transfer->copied_ns);
    if (transfer->kernel_ns > 0)
        trace_add(load->trace, TRACE_STREAM, transfer->stream, "dequantise", transfer->end_ns - transfer->kernel_ns,
                  transfer->end_ns);
}

/* Adds a fill that is over to the load's counts, or notes its error. */
static void load_account(struct load *load, const struct fill *fill)
{
    if (fill->status == 0) {
        load->filled_bytes += fill->chunk->model_bytes;
        load->model->overflows += fill->overflows;
        for (size_t i = 0; i < fill->n_shares; i++)
            load_count_share(load, &fill->shares[i]);
        load_count_direct(load, fill);
        load->phases.copy_ns += fill->transfer.copy_ns;
        load->phases.kernel_ns += fill->transfer.kernel_ns;
        load_trace_transfer(load, &fill->transfer);
    } else if (fill->of_file)
        failure_set_file(&load->failure, fill->status, &fill->fault, load->model->source->path);
    else if (fill->status == -ENOMEM)
        load_fail_out_of_memory(load, load->model, device_available(load->device));
    else
        load_fail_device(load, fill->status, &fill->fault);
}

/* Whether the load may take one more slot. The most slots a load may use: the few that fit into the processors' caches;
 * as many as the device asks for, if it reads past the page cache. Slots beyond these were made for other loads. A load
 * without an arena keeps its slots until it has one, so it leaves one slot to loads with an arena. A load whose jobs
 * would wait anyway takes no slot. */
static bool load_may_use(const struct load *load)
{
    const bool few = load->device->n_cached > 0 && !load->reads_direct;
    const size_t n_slots = few ? load->device->n_cached : load->device->n_slots;
    if (load_ends(load))
        return false;
    assert(load->model && load->plan);
    if (load->next_chunk == load->plan->n_chunks || load->n_fills + (load->model->arena ? 0 : 1) >= n_slots)
        return false;
    const struct work_reads reads = source_reads(load->model->source, load->request.uid);
    return load->restores || !workers_keep_waiting(load->loads->core->queue, &reads);
}

/* Adds the load to the schedule again, if it was taken out and can use a slot now. */
static void load_reschedule(struct load *load)
{
    if (load->fills && load->state == LOAD_FILLING && !load->consumer.scheduled && load_may_use(load))
        scheduler_add(devices_scheduler(load->loads->devices, load->device), &load->consumer);
}

static void load_filled(struct fill *fill)
{
    struct load *load = fill->context;
    struct slot *slot = fill->slot;
    if (fill->waits && !load_ends(load)) {
        if (load->model->arena)
            fill_continue(load->loads->core->queue, fill, load->model->arena);
        return; /* without an arena it stays held: for load_fill_continue() or load_fill_end() */
    }
    load->n_fills--;
    load->loads->core->steps++;
    if (fill->waits)
        fill->waits = false; /* it was filled in vain: the load ends */
    else
        load_account(load, fill);
    load->reads_direct = fill->direct_end_ns > 0;
    load_reschedule(load);
    scheduler_give(devices_scheduler(load->loads->devices, slot->device), slot); /* may call load_use() of this load */
    load_step(load); /* may free the load, and the last load may end the daemon: use nothing after this */
}

/* The scheduler offers a slot. Returns the bytes that the slot's fill moves; 0: the load does not take the slot. */
static uint64_t load_use(struct consumer *consumer, struct slot *slot)
{
    struct load *load = (struct load *)((char *)consumer - offsetof(struct load, consumer));
    if (!load_may_use(load))
        return 0;
    struct fill *fill = &load->fills[slot->index];
    const struct chunk *chunk = &load->plan->chunks[load->next_chunk++];
    *fill = (struct fill){
        .source = load->model->source,
        .uid = load->request.uid,
        .memory = load->restores ? load->model->cache : NULL,
        .pinned = load->restores && load->model->cache_pinned,
        .cold = load->cold,
        .plan = load->plan,
        .chunk = chunk,
        .slot = slot,
        .arena = load->model->arena,
        .mailbox = load->loads->core->mailbox,
        .workers = load->loads->core->workers,
        .done = load_filled,
        .context = load,
        .last = load->next_chunk + CHUNKS_LAST > load->plan->n_chunks,
    };
    load->n_fills++;
    fill_queue(load->loads->core->queue, fill);
    return max_u64(chunk->file_bytes, chunk->model_bytes);
}

/* --- files that do not answer --- */

static bool fill_held_up(const struct fill *fill)
{
    for (size_t i = 0; fill->under_way > 0 && i < fill->n_shares; i++)
        if (work_held_up(&fill->shares[i].work))
            return true;
    return false;
}

/* How many slots this load blocks, because its files do not answer: other loads cannot use them. */
static size_t slots_held_up(const struct load *load)
{
    size_t n = 0;
    for (size_t i = 0; load->fills && i < staging_slots(load->device->staging); i++)
        n += fill_held_up(&load->fills[i]);
    return n;
}

bool load_held_up(const struct load *load)
{
    return (load->in_job && work_held_up(&load->job.work)) || slots_held_up(load) > 0;
}

/* Makes one more slot. */
struct growth {
    struct work work;
    struct loads *loads;
    struct device *device;
    int status;
};

static void growth_work(struct work *work)
{
    struct growth *growth = work->data;
    struct device_fault unused;
    growth->status = staging_make(growth->device->staging, &unused);
}

static void staging_grow(struct loads *loads, struct device *device);

static void growth_worked(struct work *work)
{
    struct growth growth = *(struct growth *)work->data;
    free(work->data);
    growth.device->grows = false;
    if (growth.status == 0) { /* else the next change tries again */
        staging_add(growth.device->staging);
        scheduler_more(devices_scheduler(growth.loads->devices, growth.device));
        staging_grow(growth.loads, growth.device);
    }
    core_job_end(growth.loads->core);
}

static void staging_grow(struct loads *loads, struct device *device)
{
    size_t missing = 0;
    const struct load *load;
    TAILQ_FOREACH(load, &loads->list, link)
    {
        missing += load->device == device ? slots_held_up(load) : 0;
    }
    if (device->grows || device->failed || loads->core->stopping || staging_lacks(device->staging, missing) == 0)
        return;
    struct growth *growth = malloc(sizeof(*growth));
    if (!growth)
        return;
    *growth = (struct growth){.loads = loads, .device = device};
    device->grows = true;
    core_job_begin(loads->core);
    worker_queue(loads->core->queue, &growth->work, growth, growth_work, growth_worked);
}

void loads_held_up(struct loads *loads)
{
    struct load *load, *next;
    for (size_t i = 0; i < loads->devices->n; i++)
        staging_grow(loads, loads->devices->devices[i]);
    for (load = TAILQ_FIRST(&loads->list); load; load = next) {
        next = TAILQ_NEXT(load, link);
        if (load->model)
            load->model->held_up = load_held_up(load);
        load_reschedule(load);
        if (load_ends(load))
            load_step(load); /* it need not let its clients wait */
    }
}

bool load_hangs(const struct load *load, uint64_t begun_before)
{
    for (size_t i = 0; load->fills && i < staging_slots(load->device->staging); i++) {
        const uint64_t since = atomic_load(&load->fills[i].handed_over);
        if (since > 0 && since < begun_before)
            return true;
    }
    return false;
}

int load_fill_begin(struct load *load, const struct plan *plan)
{
    load->fills = calloc(staging_slots_most(load->device->staging), sizeof(*load->fills));
    if (!load->fills)
        return -ENOMEM;
    if (!load->restores && load->loads->direct && !load->cold)
        (void)cold_new(load->loads->direct, load->model->source, &load->cold); /* without it, as it ever was */
    load->plan = plan;
    load->filling = uv_hrtime();
    load->consumer.use = load_use;
    scheduler_add(devices_scheduler(load->loads->devices, load->device), &load->consumer);
    return 0;
}

void load_fill_continue(struct load *load)
{
    for (size_t i = 0; i < staging_slots(load->device->staging); i++)
        if (load->fills[i].waits)
            fill_continue(load->loads->core->queue, &load->fills[i], load->model->arena);
    if (!load->consumer.scheduled)
        scheduler_add(devices_scheduler(load->loads->devices, load->device), &load->consumer);
}

void load_fill_end(struct load *load)
{
    struct scheduler *scheduler = devices_scheduler(load->loads->devices, load->device);
    scheduler_remove(scheduler, &load->consumer);
    for (size_t i = 0; load->fills && i < staging_slots(load->device->staging); i++) {
        struct fill *fill = &load->fills[i];
        if (!fill->waits)
            continue;
        fill->waits = false;
        load->n_fills--;
        scheduler_give(scheduler, fill->slot);
    }
}

/* Files that a worker drops from the page cache: there may be millions of pages. */
struct cache_drop {
    struct core *core;
    struct source *source;
    struct work work;
};

static void cache_drop_work(struct work *work)
{
    const struct cache_drop *drop = work->data;
    worker_step_back();
    cold_drop(drop->source);
}

static void cache_drop_worked(struct work *work)
{
    struct cache_drop *drop = work->data;
    struct core *core = drop->core;
    source_free(drop->source);
    free(drop);
    core_job_end(core);
}

void load_drop_cached(struct load *load)
{
    if (load->loads->page_cache != PAGE_CACHE_DROP || load->restores)
        return;
    struct cache_drop *drop = malloc(sizeof(*drop));
    if (!drop)
        return;
    *drop = (struct cache_drop){.core = load->loads->core, .source = source_ref(load->model->source)};
    core_job_begin(drop->core);
    const struct work_reads reads = source_reads(drop->source, load->request.uid);
    worker_queue_reading(drop->core->queue, &drop->work, &reads, drop, cache_drop_work, cache_drop_worked);
}
