#include "daemon/model/registry.h"

#include "daemon/wire/conn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

void registry_init(struct registry *registry)
{
    *registry = (struct registry){.next_model = 1, .next_lease = 1};
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

struct model *registry_find_source(const struct registry *registry, const struct source *source, enum form form,
                                   const struct choice *among, const uid_t *owner)
{
    struct model *model;
    TAILQ_FOREACH(model, &registry->models, link)
    {
        bool shown = owner ? model->private && model->uid == *owner : !model->private;
        if (shown && model->state != MODEL_DRAINING && model->state != MODEL_FAILED && model->form == form &&
            choice_has(among, model->device) && source_equal(model->source, source))
            return model;
    }
    return NULL;
}

void registry_add(struct registry *registry, struct model *model)
{
    assert(!registry_find(registry, model->name));
    model->id = registry->next_model++;
    TAILQ_INSERT_TAIL(&registry->models, model, link);
    registry->n_models++;
}

void registry_remove(struct registry *registry, struct model *model)
{
    assert(LIST_EMPTY(&model->leases) && !model->arena && !model->load && !model->cache && model->reserved == 0);
    TAILQ_REMOVE(&registry->models, model, link);
    registry->n_models--;
    publication_clear(&model->published);
    registry_discharge(model);
    plan_free(model->plan);
    gguf_free(model->header);
    source_free(model->source);
    free(model);
}

uint64_t device_available(const struct device *device)
{
    return !device->failed && device->budget > device->used ? device->budget - device->used : 0;
}

int registry_reserve(struct model *model, uint64_t bytes, uint64_t *ret_available)
{
    uint64_t available = device_available(model->device);
    if (bytes > available) {
        *ret_available = available;
        return -ENOMEM;
    }
    model->device->used += bytes;
    model->reserved += bytes;
    return 0;
}

void registry_release(struct model *model)
{
    assert(model->device->used >= model->reserved);
    model->device->used -= model->reserved;
    model->reserved = 0;
}

uint64_t registry_due(const struct model *model, uint64_t bytes)
{
    const uint64_t kept = model->kept + bytes;
    return kept > REGISTRY_KEPT_FREE ? kept - REGISTRY_KEPT_FREE - model->charged : 0;
}

void registry_charge_beyond(struct model *model, struct device *host, uint64_t bytes)
{
    const uint64_t due = registry_due(model, bytes);
    host->used += due;
    model->kept += bytes;
    model->charged += due;
    model->charged_to = host;
}

void registry_discharge(struct model *model)
{
    if (model->charged_to)
        model->charged_to->used -= model->charged;
    model->charged = 0;
    model->charged_to = NULL;
}

int registry_charge(struct model *model, struct device *host, uint64_t bytes, uint64_t *ret_available)
{
    const uint64_t available = device_available(host);
    if (registry_due(model, bytes) > available) {
        *ret_available = available;
        return -ENOMEM;
    }
    registry_charge_beyond(model, host, bytes);
    return 0;
}

struct lease *registry_lease(struct registry *registry, struct model *model, struct conn *conn)
{
    struct lease *lease = calloc(1, sizeof(*lease));
    if (!lease)
        return NULL;
    lease->id = registry->next_lease++;
    lease->registry = registry;
    lease->model = model;
    lease->conn = conn;
    lease->since = uv_hrtime();
    LIST_INSERT_HEAD(&model->leases, lease, of_model);
    LIST_INSERT_HEAD(conn_leases(conn), lease, of_conn);
    model->n_leases++;
    registry->n_leases++;
    return lease;
}

void lease_end(struct lease *lease)
{
    struct model *model = lease->model;
    LIST_REMOVE(lease, of_model);
    LIST_REMOVE(lease, of_conn);
    model->n_leases--;
    model->idle_since = uv_hrtime();
    struct registry *registry = lease->registry;
    registry->n_leases--;
    free(lease);
    if (registry->lease_ended)
        registry->lease_ended(registry, model);
}
