#include "daemon/memory/spared.h"

#include "daemon/base/log.h"
#include "proto/bytes.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* After this multiple of keep_ns, memory is freed even if the device has a load. */
#define KEEP_TIMES 5u

struct spare_origin spared_origin(const struct model *model)
{
    struct spare_origin origin = {.id = model->id};
    strncpy(origin.model, model->name, sizeof(origin.model) - 1);
    return origin;
}

void spared_check(const struct device *device, const struct spare_origin *origin, uint64_t bytes, uint64_t free_before,
                  uint64_t free_after)
{
    const uint64_t freed = free_after > free_before ? free_after - free_before : 0;
    char taken[BYTES_TEXT_SIZE], back[BYTES_TEXT_SIZE];
    if (device->export_kind == EXPORT_MEMFD || freed >= bytes / 2)
        return;
    log_client(LOG_LEVEL_WARNING,
               "model=%s id=%" PRIu64 " device=%s: of its %s the driver has %s back; a client may have it open",
               origin->model, origin->id, device->id, bytes_text(taken, (double)bytes, ""),
               bytes_text(back, (double)freed, ""));
}

/* What a worker tells the loop, which writes to the journal. */
struct gone {
    struct letter letter;
    const struct device *device;
    struct spare_origin origin;
    uint64_t bytes, free_before, free_after;
};

static void deliver(struct letter *letter)
{
    struct gone *gone = (struct gone *)((char *)letter - offsetof(struct gone, letter));
    spared_check(gone->device, &gone->origin, gone->bytes, gone->free_before, gone->free_after);
    free(gone);
}

/* Runs inside a worker's job, so the daemon does not end before the loop has the letter. */
static void tell(void *context, const struct device *device, const struct spare_origin *origin, uint64_t bytes,
                 uint64_t free_before, uint64_t free_after)
{
    struct spared *spared = context;
    struct gone *gone = malloc(sizeof(*gone));
    if (!gone)
        return;
    *gone = (struct gone){.letter.deliver = deliver,
                          .device = device,
                          .origin = *origin,
                          .bytes = bytes,
                          .free_before = free_before,
                          .free_after = free_after};
    mailbox_post(spared->core->mailbox, &gone->letter);
}

bool spared_leave(struct spared *spared, const struct model *model, bool kept)
{
    const struct spare_origin origin = spared_origin(model);
    return spared->keep_ns > 0 && device_spare(model->device, model->arena, model->plan->arena_bytes,
                                               model->arena_own && !kept, &origin, tell, spared);
}

struct release {
    struct spared *spared;
    struct work work;
};

static void release_work(struct work *work)
{
    const struct release *release = work->data;
    worker_step_back();
    for (size_t i = 0; i < release->spared->devices->n; i++)
        device_spares_release(release->spared->devices->devices[i]);
}

static void release_worked(struct work *work)
{
    struct release *release = work->data;
    struct core *core = release->spared->core;
    free(release);
    core_job_end(core);
}

static bool has_load(const struct registry *registry)
{
    const struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model->load && model->device && !device_is_host(model->device))
            return true;
    }
    return false;
}

static void timer_fired(uv_timer_t *timer)
{
    struct spared *spared = timer->data;
    if (spared->core->stopping)
        return;
    const bool wait = has_load(spared->registry) && uv_hrtime() - spared->since < KEEP_TIMES * spared->keep_ns;
    struct release *release = wait ? NULL : malloc(sizeof(*release));
    if (!release) {
        uv_timer_start(timer, timer_fired, spared->keep_ns / 1000000, 0);
        return;
    }
    *release = (struct release){.spared = spared};
    spared->since = 0;
    core_job_begin(spared->core);
    worker_queue(spared->core->queue, &release->work, release, release_work, release_worked);
}

/* Each kept arena restarts the timer: otherwise the driver would clear memory between an unload and the next load. */
void spared_later(struct spared *spared)
{
    if (spared->core->stopping)
        return;
    if (spared->since == 0)
        spared->since = uv_hrtime();
    if (uv_hrtime() - spared->since < KEEP_TIMES * spared->keep_ns || !uv_is_active((uv_handle_t *)&spared->timer))
        uv_timer_start(&spared->timer, timer_fired, spared->keep_ns / 1000000, 0);
}

int spared_init(struct spared *spared)
{
    spared->timer.data = spared;
    return uv_timer_init(spared->core->loop, &spared->timer);
}

void spared_close(struct spared *spared)
{
    uv_close((uv_handle_t *)&spared->timer, NULL);
}
