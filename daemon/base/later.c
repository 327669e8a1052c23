#include "daemon/base/later.h"

#include <assert.h>
#include <stdint.h>

/* Then the loop looks at its other work before it goes on. */
#define LATER_NS 500000u

static void run_some(uv_idle_t *idle)
{
    struct laters *laters = idle->data;
    const uint64_t began = uv_hrtime();
    do {
        struct later *later = TAILQ_FIRST(&laters->list);
        later_drop(laters, later);
        later->run(later); /* may free it, and may drop others */
    } while (!TAILQ_EMPTY(&laters->list) && uv_hrtime() - began < LATER_NS);
}

void laters_init(struct laters *laters, uv_loop_t *loop)
{
    TAILQ_INIT(&laters->list);
    uv_idle_init(loop, &laters->idle); /* cannot fail */
    laters->idle.data = laters;
}

void laters_close(struct laters *laters)
{
    assert(TAILQ_EMPTY(&laters->list));
    uv_close((uv_handle_t *)&laters->idle, NULL);
}

void later_run(struct laters *laters, struct later *later, void (*run)(struct later *later))
{
    if (later->waits)
        return;
    later->waits = true;
    later->run = run;
    TAILQ_INSERT_TAIL(&laters->list, later, link);
    uv_idle_start(&laters->idle, run_some);
}

void later_drop(struct laters *laters, struct later *later)
{
    if (!later->waits)
        return;
    later->waits = false;
    TAILQ_REMOVE(&laters->list, later, link);
    if (TAILQ_EMPTY(&laters->list))
        uv_idle_stop(&laters->idle);
}
