#include "daemon/model.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

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
    return !model->private || uid == model->uid || uid == 0;
}

bool model_in_use(const struct model *model)
{
    return model->n_leases > 0 || model->n_holds > 0;
}

static bool name_character(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr("._-:@+", c));
}

int model_name_check(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > MODEL_NAME_MAX)
        return -EINVAL;
    for (size_t i = 0; i < n; i++)
        if (!name_character(name[i]))
            return -EINVAL;
    return 0;
}

void model_name_derive(const char *path, char name[MODEL_NAME_MAX + 1])
{
    const char *slash = path ? strrchr(path, '/') : NULL;
    const char *base = slash ? slash + 1 : path ? path : "";
    size_t n = strlen(base);
    static const char suffix[] = ".gguf";
    if (n > strlen(suffix) && strcasecmp(base + n - strlen(suffix), suffix) == 0)
        n -= strlen(suffix);
    if (n > MODEL_NAME_MAX)
        n = MODEL_NAME_MAX;
    for (size_t i = 0; i < n; i++)
        name[i] = name_character(base[i]) ? base[i] : '_';
    name[n] = '\0';
    if (n == 0)
        strcpy(name, "model");
}
