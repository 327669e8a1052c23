#include "daemon/model.h"

#include "daemon/users.h"

#include <assert.h>

static const char *const state_names[] = {
    [MODEL_OPENING] = "opening",     [MODEL_ALLOCATING] = "allocating", [MODEL_FILLING] = "filling",
    [MODEL_SEALING] = "sealing",     [MODEL_RESIDENT] = "resident",     [MODEL_DRAINING] = "draining",
    [MODEL_UNLOADING] = "unloading", [MODEL_FAILED] = "failed",         [MODEL_SAVING] = "saving",
    [MODEL_CACHED] = "cached",
};

const char *model_state_name(enum model_state state)
{
    return state < MODEL_STATE_COUNT ? state_names[state] : "unknown";
}

void model_hold(struct model *model)
{
    model->n_holds++;
}

void model_release(struct model *model)
{
    assert(model->n_holds > 0);
    model->n_holds--;
}

bool model_visible(const struct model *model, uid_t uid)
{
    return !model->private || uid == model->uid || user_trusted(uid);
}

bool model_in_use(const struct model *model)
{
    return model->n_leases > 0 || model->n_holds > 0;
}
