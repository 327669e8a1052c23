#include "daemon/memory/host_cache.h"

#include "daemon/base/log.h"
#include "daemon/base/worker.h"
#include "daemon/memory/admission.h"
#include "daemon/session/events.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

/* A copy that a worker unmaps. Freeing so many pages would block the loop for too long. */
struct drop {
    struct host_cache *cache;
    void *memory;
    uint64_t bytes;
    struct work work;
};

static void drop_work(struct work *work)
{
    struct drop *drop = work->data;
    worker_step_back();
    munmap(drop->memory, drop->bytes);
}

static void drop_worked(struct work *work)
{
    struct drop *drop = work->data;
    struct host_cache *cache = drop->cache;
    free(drop);
    core_job_end(cache->core);
}

void host_cache_note(const struct host_cache *cache)
{
    if (cache->devices->n > 0)
        devices_host(cache->devices)->cached =
            host_pool_state(cache->pool) == HOST_POOL_READY ? cache->size : cache->used;
}

void host_cache_count(struct host_cache *cache, uint64_t more, uint64_t less)
{
    assert(less <= cache->used);
    cache->used = cache->used + more - less;
    host_cache_note(cache);
}

void host_cache_drop(struct host_cache *cache, struct model *model)
{
    if (!model->cache)
        return;
    if (model->cache_pinned) {
        host_pool_give(cache->pool, model->cache);
        model->cache = NULL;
        model->cache_pinned = false;
        host_cache_count(cache, 0, model->plan->arena_bytes);
        return;
    }
    struct drop *drop = malloc(sizeof(*drop));
    if (drop) {
        *drop = (struct drop){.cache = cache, .memory = model->cache, .bytes = model->plan->arena_bytes};
        core_job_begin(cache->core);
        worker_queue(cache->core->queue, &drop->work, drop, drop_work, drop_worked);
    } else
        munmap(model->cache, model->plan->arena_bytes);
    model->cache = NULL;
    host_cache_count(cache, 0, model->plan->arena_bytes);
}

void host_cache_forget(struct host_cache *cache, struct model *model)
{
    assert(model->state == MODEL_CACHED);
    host_cache_drop(cache, model);
    const struct log_fields fields = {.id = MESSAGE_MODEL_UNLOADED,
                                      .model = model->name,
                                      .device = model->device->id,
                                      .has_bytes = true,
                                      .bytes = model->plan->arena_bytes};
    log_client_fields(LOG_LEVEL_INFO, &fields, "model=%s id=%" PRIu64 " dropped from host memory", model->name,
                      model->id);
    events_emit(cache->events, "unloaded", model, NULL);
    registry_remove(cache->registry, model);
    core_changed(cache->core);
}

/* Drops the cached model that was used the longest ago, but never a pinned one. Returns false if there is none: the
 * others are just being saved, compared or loaded back. */
static bool drop_oldest(struct host_cache *cache)
{
    struct model *model, *oldest = NULL;
    TAILQ_FOREACH(model, &cache->registry->models, link)
    {
        if (model->state == MODEL_CACHED && admission_may_go(model) &&
            (!oldest || model->idle_since < oldest->idle_since))
            oldest = model;
    }
    if (oldest)
        host_cache_forget(cache, oldest);
    return oldest != NULL;
}

bool host_cache_make_room(struct host_cache *cache, const struct device *device, uint64_t bytes, void **ret_room)
{
    *ret_room = NULL;
    if (bytes > cache->size || host_pool_state(cache->pool) == HOST_POOL_MAKING)
        return false;
    while (cache->used + bytes > cache->size)
        if (!drop_oldest(cache))
            return false;
    if (!host_pool_serves(cache->pool, device))
        return host_pool_state(cache->pool) == HOST_POOL_NONE;
    while (!(*ret_room = host_pool_take(cache->pool, bytes)))
        if (!drop_oldest(cache))
            return false;
    return true;
}

void host_cache_pin(struct host_cache *cache)
{
    cache->pool = host_pool_new(cache->core, cache->devices, cache->size);
}

void host_cache_unpin(struct host_cache *cache)
{
    host_pool_free(cache->pool);
    cache->pool = NULL;
}
