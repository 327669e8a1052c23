#include "daemon/load/loads.h"

#include "daemon/base/trust.h"
#include "daemon/load/states.h"

/* A queued load asks the drivers again after this time, even if no model was unloaded: other processes may have freed
 * memory. */
#define ASK_AGAIN_NS 1000000000u

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
