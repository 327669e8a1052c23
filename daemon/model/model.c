#include "daemon/model/model.h"

#include "daemon/base/users.h"

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

#define BIT(state) (1u << (state))

/* The states that may follow each. */
static const unsigned transitions[] = {
    [MODEL_OPENING] = BIT(MODEL_ALLOCATING) | BIT(MODEL_UNLOADING),
    [MODEL_ALLOCATING] = BIT(MODEL_FILLING) | BIT(MODEL_UNLOADING),
    [MODEL_FILLING] = BIT(MODEL_SEALING) | BIT(MODEL_UNLOADING),
    [MODEL_SEALING] = BIT(MODEL_RESIDENT) | BIT(MODEL_UNLOADING),
    [MODEL_RESIDENT] = BIT(MODEL_DRAINING) | BIT(MODEL_UNLOADING) | BIT(MODEL_SAVING) | BIT(MODEL_FAILED),
    [MODEL_DRAINING] = BIT(MODEL_UNLOADING),
    [MODEL_UNLOADING] = BIT(MODEL_CACHED),
    [MODEL_FAILED] = BIT(MODEL_DRAINING) | BIT(MODEL_UNLOADING),
    [MODEL_SAVING] = BIT(MODEL_CACHED),
    [MODEL_CACHED] = BIT(MODEL_ALLOCATING),
};

bool model_may_move(enum model_state from, enum model_state to)
{
    return from < MODEL_STATE_COUNT && (from == to || (transitions[from] & BIT(to)));
}

void model_move(struct model *model, enum model_state state)
{
    assert(model_may_move(model->state, state));
    model->state = state;
}

bool model_lost(const struct model *model)
{
    return model->state == MODEL_FAILED || (model->state == MODEL_DRAINING && model->device->failed);
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
