/* What keep.c, which keeps the store up to date, and taking.c, which takes models back from it, have in common. Nothing
 * else includes this.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/awaited.h"
#include "daemon/keep/description.h"
#include "daemon/memory/residency.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>

/* A model that the store has. */
struct kept {
    TAILQ_ENTRY(kept) link;
    uint64_t model; /* its id */
    uint64_t key;
    uint64_t print;    /* of what its description says and may change; 0: it was not described yet */
    uint32_t sequence; /* of its description */
    uint32_t next_number;
    size_t n_parts;
    size_t n_files;
    struct description_file *files;
};

struct keep {
    struct residency *residency;
    TAILQ_HEAD(, kept) list; /* by the models' ids, as the registry's */
    uv_prepare_t prepare;
    uv_timer_t timer;
    uint64_t grace_ms;
    uint64_t *held; /* ids of models that are held for the time of grace */
    size_t n_held;
    struct awaited_gpus awaited; /* that models were taken back on before their drivers had started */
    unsigned closing;            /* handles */
    bool stopped;
};

/* Removes from the store what it has of the model, and forgets it. */
void kept_drop(struct keep *keep, struct kept *kept);

/* A number that changes with what may change in the model's description. Never 0. */
uint64_t kept_print(const struct model *model);

/* Begins the time of grace for the models that are held. */
void keep_hold(struct keep *keep);
