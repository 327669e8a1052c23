/* What the loop may do a moment later, between its other work: telling all who watch of one of many changes, for
 * instance. What waits is done in order, for half a millisecond at a time.
 *
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <sys/queue.h>
#include <uv.h>

/* A part of a larger struct, zeroed at first. */
struct later {
    TAILQ_ENTRY(later) link;
    bool waits;
    void (*run)(struct later *later);
};

struct laters {
    uv_idle_t idle; /* runs while something waits: the loop does not sleep then */
    TAILQ_HEAD(, later) list;
};

/* Must not move in memory from now on. */
void laters_init(struct laters *laters, uv_loop_t *loop);

/* Nothing waits. The loop closes the handle later, so the struct must live until then. */
void laters_close(struct laters *laters);

/* Calls run(later) once, soon. Fine if it waits already. */
void later_run(struct laters *laters, struct later *later, void (*run)(struct later *later));

/* It is not run. Fine if it does not wait. */
void later_drop(struct laters *laters, struct later *later);
