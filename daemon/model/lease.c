#include "daemon/model/lease.h"

#include "daemon/model/model.h"
#include "daemon/model/registry.h"

#include <errno.h>
#include <stdlib.h>
#include <uv.h>

int lease_grant(struct registry *registry, struct model *model, struct lease_holder *holder, struct lease **ret,
                uint64_t *ret_limit)
{
    struct lease *lease = calloc(1, sizeof(*lease));
    if (!lease)
        return -ENOMEM;
    int r = quota_take(registry->quota, holder->uid, QUOTA_LEASES, 1, &lease->charge, ret_limit);
    if (r < 0) {
        free(lease);
        return r;
    }
    lease->id = registry->next_lease++;
    lease->registry = registry;
    lease->model = model;
    lease->holder = holder;
    lease->since = uv_hrtime();
    LIST_INSERT_HEAD(&model->leases, lease, of_model);
    LIST_INSERT_HEAD(&holder->leases, lease, of_holder);
    model->n_leases++;
    model->arena_own = false;
    registry->n_leases++;
    *ret = lease;
    return 0;
}

void lease_end(struct lease *lease)
{
    struct model *model = lease->model;
    struct registry *registry = lease->registry;
    LIST_REMOVE(lease, of_model);
    LIST_REMOVE(lease, of_holder);
    quota_return(&lease->charge);
    free(lease->name);
    free(lease);
    model->n_leases--;
    model->idle_since = uv_hrtime();
    registry->n_leases--;
    if (registry->lease_ended)
        registry->lease_ended(registry->context, model);
}

bool lease_void(const struct lease *lease)
{
    return lease->model->state == MODEL_DRAINING || lease->model->state == MODEL_FAILED;
}
