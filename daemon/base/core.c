#include "daemon/base/core.h"

#include <assert.h>

/* How long the loop polls without sleeping. It takes time to wake a thread on an idle processor, and a load has three
 * such steps one after the other before its first copy (`rfctl load --trace` shows them). They take less than this. */
#define BUSY_POLL_NS 2000000u

int core_init(struct core *core, uv_loop_t *loop)
{
    *core = (struct core){.loop = loop};
    int r = uv_idle_init(loop, &core->busy_poller);
    core->busy_poller.data = core;
    laters_init(&core->laters, loop);
    if (r == 0)
        r = mailbox_new(loop, &core->mailbox);
    return r < 0 ? r : workers_new(loop, core->mailbox, &core->queue);
}

static void workers_ended(void *context)
{
    struct core *core = context;
    mailbox_close(core->mailbox);
}

void core_close(struct core *core)
{
    assert(core->n_jobs == 0);
    uv_close((uv_handle_t *)&core->busy_poller, NULL);
    laters_close(&core->laters);
    workers_end(core->queue, workers_ended, core);
}

void core_changed(struct core *core)
{
    if (core->changed)
        core->changed(core);
}

void core_job_begin(struct core *core)
{
    if (core->n_jobs++ == 0 && core->busy)
        core->busy(core, true);
    core_changed(core);
}

void core_job_end(struct core *core)
{
    assert(core->n_jobs > 0);
    core->steps++;
    if (--core->n_jobs == 0 && core->busy)
        core->busy(core, false);
}

/* Called each time that the loop has polled. */
static void busy_poll(uv_idle_t *idle)
{
    const struct core *core = idle->data;
    if (uv_hrtime() >= core->busy_poll_ends)
        uv_idle_stop(idle);
}

void core_keep_awake(struct core *core)
{
    if (!core->has_processor)
        return;
    core->busy_poll_ends = uv_hrtime() + BUSY_POLL_NS;
    uv_idle_start(&core->busy_poller, busy_poll);
}
