#include "daemon/model/registry.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void registry_init(struct registry *registry, struct quota *quota)
{
    *registry = (struct registry){.next_model = 1, .next_lease = 1, .quota = quota};
    TAILQ_INIT(&registry->models);
}

struct model *registry_find(const struct registry *registry, const char *name)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (strcmp(model->name, name) == 0)
            return model;
    }
    return NULL;
}

/* All of a query but the forms. */
static bool is_of_source(const struct model *model, const struct registry_query *query)
{
    const bool shown = query->owner ? model->private && model->uid == *query->owner : !model->private;
    return shown && model->state != MODEL_DRAINING && model->state != MODEL_FAILED &&
           device_set_has(query->among, model->device) && source_equal(model->source, query->source);
}

struct model *registry_find_source(const struct registry *registry, const struct registry_query *query)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (is_of_source(model, query) && model_same_forms(model, query->forms, query->plan))
            return model;
    }
    return NULL;
}

struct model *registry_find_other(const struct registry *registry, const struct registry_query *query, bool unplanned)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (is_of_source(model, query) && !forms_equal(model->forms, query->forms) && (!unplanned || !model->plan))
            return model;
    }
    return NULL;
}

int registry_add(struct registry *registry, struct model *model)
{
    assert(!registry_find(registry, model->name));
    uint64_t unused;
    if (registry->quota && quota_take(registry->quota, model->uid, QUOTA_BYTES, 0, &model->quota, &unused) < 0)
        return -ENOMEM;
    model->id = registry->next_model++;
    TAILQ_INSERT_TAIL(&registry->models, model, link);
    registry->n_models++;
    return 0;
}

void registry_remove(struct registry *registry, struct model *model)
{
    assert(LIST_EMPTY(&model->leases) && !model->arena && !model->load && !model->cache && model->reserved == 0);
    TAILQ_REMOVE(&registry->models, model, link);
    registry->n_models--;
    publication_clear(&model->published);
    registry_discharge(model);
    quota_return(&model->quota);
    plan_free(model->plan);
    gguf_free(model->header);
    source_free(model->source);
    forms_unref(model->forms);
    free(model);
}

void registry_reserve(struct model *model, uint64_t bytes)
{
    model->device->used += bytes;
    model->reserved += bytes;
    quota_set(&model->quota, model->reserved + model->charged);
}

void registry_unreserve(struct model *model)
{
    assert(model->device->used >= model->reserved);
    model->device->used -= model->reserved;
    model->reserved = 0;
    quota_set(&model->quota, model->charged);
}

uint64_t registry_due(const struct model *model, uint64_t bytes)
{
    const uint64_t kept = (model ? model->kept : 0) + bytes;
    return kept > REGISTRY_KEPT_FREE ? kept - REGISTRY_KEPT_FREE - (model ? model->charged : 0) : 0;
}

void registry_charge(struct model *model, struct device *host, uint64_t bytes)
{
    const uint64_t due = registry_due(model, bytes);
    host->used += due;
    atomic_fetch_add(&host->taken, due); /* it is: the caller has it */
    model->kept += bytes;
    model->charged += due;
    quota_set(&model->quota, model->reserved + model->charged);
    model->charged_to = host;
}

void registry_discharge(struct model *model)
{
    if (model->charged_to) {
        model->charged_to->used -= model->charged;
        atomic_fetch_sub(&model->charged_to->taken, model->charged);
    }
    model->charged = 0;
    quota_set(&model->quota, model->reserved);
    model->charged_to = NULL;
}

void registry_lose_device(struct registry *registry, struct device *device)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        if (model->device != device || model->state != MODEL_RESIDENT)
            continue;
        model_move(model, MODEL_FAILED);
        if (registry->model_failed)
            registry->model_failed(registry->context, model);
    }
}
