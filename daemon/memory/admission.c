#include "daemon/memory/admission.h"

#include "daemon/memory/eviction.h"

#include <errno.h>
#include <stdlib.h>

bool admission_may_go(const struct model *model)
{
    return !model->pinned && !model_in_use(model);
}

/* Bytes of the device's memory that evicting the model would free; 0 if it may not be evicted. */
static uint64_t evictable_bytes(const struct model *model, const struct device *device)
{
    if (!admission_may_go(model))
        return 0;
    if (model->state == MODEL_FAILED)
        return model->charged_to == device ? model->charged : 0;
    return model->state == MODEL_RESIDENT && model->device == device ? model->reserved : 0;
}

uint64_t admission_evictable(const struct registry *registry, const struct device *device)
{
    uint64_t bytes = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        bytes += evictable_bytes(model, device);
    }
    return bytes;
}

/* Bytes that are still in the ledger, but will soon be free. If the model becomes cached again, its header stays in
 * host memory. */
static uint64_t departing_bytes(const struct model *model, const struct device *device)
{
    if (!model_departs(model))
        return 0;
    return (model->device == device ? model->reserved : 0) +
           (model->charged_to == device && !model->cache ? model->charged : 0);
}

static uint64_t departing(const struct registry *registry, const struct device *device)
{
    uint64_t bytes = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        bytes += departing_bytes(model, device);
    }
    return bytes;
}

int admission_victims(const struct registry *registry, const struct device *device, uint64_t bytes, uint64_t charged,
                      uint64_t ahead, struct model **models, size_t *n, struct room_shortage *ret_shortage)
{
    const size_t capacity = registry->n_models;
    struct candidate *candidates = calloc(capacity ? capacity : 1, sizeof(*candidates));
    struct model **evictable = calloc(capacity ? capacity : 1, sizeof(struct model *));
    const struct room room = {
        .limit = device_limit(device),
        .used = device->used - charged,
        .departing = departing(registry, device),
        .ahead = ahead,
    };
    size_t n_candidates = 0;
    struct model *model;
    int r = candidates && evictable ? 0 : -ENOMEM;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        const uint64_t of_model = evictable_bytes(model, device);
        if (r < 0 || of_model == 0)
            continue;
        candidates[n_candidates] = (struct candidate){.bytes = of_model, .last_used = model->idle_since};
        evictable[n_candidates++] = model;
    }
    if (r == 0)
        r = room_choose(&room, bytes, candidates, n_candidates, ret_shortage);
    else
        *ret_shortage = (struct room_shortage){0};
    for (size_t i = 0; i < n_candidates && r == 0; i++)
        if (candidates[i].chosen)
            models[(*n)++] = evictable[i];
    free(candidates);
    free(evictable);
    return r;
}

/* Checks `due` against the host's memory. The daemon has allocated these bytes already, so it does not wait for memory
 * that is being freed: that memory counts as free. If the model is for another device, chooses models of the host to
 * evict for `due`. If the model is for the host, the later choice for the model includes `due`. */
static int choose_for_due(const struct registry *registry, const struct admission_want *want, struct model **models,
                          size_t *n, struct room_shortage *ret_shortage)
{
    const struct device *host = want->host;
    size_t n_host = 0;
    if (want->due == 0)
        return 0;
    int r =
        admission_victims(registry, host, want->due, want->charged ? want->due : 0, 0, models, &n_host, ret_shortage);
    if (r == -ENOSPC)
        return -EDQUOT;
    if (r == 0 && want->device != host)
        *n += n_host;
    return r == -EAGAIN ? 0 : r;
}

int admission_choose(const struct registry *registry, const struct admission_want *want, struct model ***ret,
                     size_t *ret_n, struct room_shortage *ret_shortage)
{
    const size_t capacity = registry->n_models;
    const bool of_host = want->device == want->host;
    const uint64_t due = of_host ? want->due : 0;
    struct model **models = calloc(2 * capacity + 1, sizeof(struct model *));
    size_t n = 0;
    *ret_shortage = (struct room_shortage){0};
    int r = models ? choose_for_due(registry, want, models, &n, ret_shortage) : -ENOMEM;
    if (r == 0)
        r = want->device->failed ? -ENOSPC
                                 : admission_victims(registry, want->device, want->bytes + due, want->charged ? due : 0,
                                                     want->ahead, models, &n, ret_shortage);
    if (r < 0) {
        free(models);
        return r;
    }
    *ret = models;
    *ret_n = n;
    return 0;
}
