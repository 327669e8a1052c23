#include "daemon/load/naming.h"

#include "daemon/base/log.h"
#include "daemon/base/trust.h"
#include "daemon/load/states.h"
#include "daemon/memory/residency.h"
#include "daemon/model/source_compare.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* --- deciding --- */

/* True if the model is cached and its device is lost: it cannot come back, so any load may take its name. */
static bool is_out_of_reach(const struct model *model)
{
    return model->state == MODEL_CACHED && model->device->failed;
}

/* True if the model was loaded from the path, or from the files, that this load reads. */
static bool is_same_place(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    if (request->path && model->origin && strcmp(model->origin, request->path) == 0)
        return true;
    return registry_same_place(model, load->job.source);
}

/* True if the path that both were loaded from led to this model's file, and leads to another one now: to a file with
 * other bytes, or, if it is a link, to a file elsewhere. */
static bool is_older(const struct load *load, const struct model *model)
{
    return is_same_place(load, model) && (model->changed || !source_same_places(model->source, load->job.source));
}

/* True if nobody uses the model, and its path, which this load reads, has other bytes by now. Then any user's load of
 * the path may take its name: who has loaded half of a download must not keep others from the whole. But not for a
 * model that would be hidden from some of those who see the old one: of a file that fewer users may read. */
static bool is_stale(const struct load *load, const struct model *model)
{
    if (!model->changed || model_in_use(model) || model->pinned)
        return false;
    if (load_may_end(&load->request, model))
        return is_same_place(load, model);
    return registry_same_path(model, load->job.source) &&
           model_covered_by(model, load->request.access, load->job.facts);
}

/* True if the model may lose its name to this load's model, and drain, when this load's model is resident. */
static bool load_may_replace(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    if (model->load || model->takes[0])
        return false;
    if (is_stale(load, model))
        return true;
    if (!load_may_end(request, model))
        return false;
    return request->replace == REPLACE_NAME || (request->replace == REPLACE_FILE && is_same_place(load, model));
}

const char *naming_wanted(const struct load *load, const struct model *model, char room[MODEL_NAME_MAX + 1])
{
    const struct load_request *request = &load->request;
    if (request->name || request->replace != REPLACE_NAME || request->creation)
        return request->name;
    load_name(load, room);
    const struct model *holder = registry_name_owner(load->loads->registry, room, request->peer);
    const bool old =
        holder && holder != model && !model_departs(holder) && !model_lost(holder) && is_older(load, holder);
    return old && load_may_replace(load, holder) ? room : NULL;
}

/* Whether `holder`, which has the name, prevents this load's model from getting it. */
static enum name_verdict judge_name_owner(const struct load *load, const struct model *holder)
{
    if (!holder)
        return NAME_FREE;
    const bool lost = holder->state == MODEL_FAILED;
    if (model_departs(holder) || holder->state == MODEL_SAVING || (lost && !model_in_use(holder)))
        return NAME_SOON_FREE; /* a lost one, because of naming_clear_lost() */
    if ((holder->state == MODEL_DRAINING || lost) && load_wants_same(load, holder))
        return NAME_BUSY;
    return is_out_of_reach(holder) || load_may_replace(load, holder) ? NAME_REPLACED : NAME_TAKEN;
}

/* Whether the model has the name, or takes it now from the holder. */
static bool has_or_takes(const struct model *model, const char *name, const struct model *holder)
{
    if (model_has_name(model, name))
        return true;
    return strcmp(model->takes, name) == 0 && (!holder || !model->load || model->load->replaces == holder->id);
}

void naming_judge(const struct load *load, const char *name, const struct model *model, struct naming *ret)
{
    const struct load_request *request = &load->request;
    *ret = (struct naming){.verdict = NAME_FREE};
    if (!name)
        return;
    strcpy(ret->name, name);
    struct model *holder = registry_name_owner(load->loads->registry, name, request->peer);
    const bool has = model && has_or_takes(model, name, holder);
    /* Two models may have the same name if different users see them. Then the name that the model has counts only if it
     * is also what the caller finds under it. */
    if (has && (!holder || holder == model || !model_has_name(model, name)))
        return;
    ret->is_new = true;
    ret->holder = holder;
    ret->verdict = judge_name_owner(load, holder);
    if (!model || has || ret->verdict == NAME_BUSY || ret->verdict == NAME_TAKEN)
        return;
    const int r = registry_may_name(model, request->uid);
    if (r == 0)
        return;
    ret->verdict = NAME_TOO_MANY;
    ret->limit = r == -EDQUOT                   ? MODEL_GIVEN_MAX
                 : load_may_end(request, model) ? MODEL_NAMES_MAX
                                                : MODEL_NAMES_MAX - MODEL_GIVEN_MAX;
}

/* --- doing --- */

void naming_clear_lost(const struct load *load, const char *name)
{
    struct model *model;
    TAILQ_FOREACH(model, &load->loads->registry->models, link)
    {
        if (model->state == MODEL_FAILED && !model_in_use(model) &&
            ((model_has_name(model, name) && model_sight(model, load->request.peer) >= SIGHT_READER) ||
             load_wants_same(load, model)))
            residency_unload(load->loads->residency, model, NULL);
    }
}

/* Notes from which model the load's model will take the name. Returns false if the load must wait for the name. */
static bool free_name(struct load *load, const char *name, const struct naming *naming)
{
    if (naming->verdict == NAME_FREE)
        return true;
    /* Another load will get this name first. Wait: we then replace its model, or the present one if it fails. */
    if (naming->verdict == NAME_SOON_FREE || registry_taker(load->loads->registry, name, load->request.peer)) {
        load->blocked = true;
        return false;
    }
    load->replaces = naming->holder->id;
    load->replaces_all = is_older(load, naming->holder);
    return true;
}

bool naming_prepare(struct load *load, const char *name, const struct model *model, const struct naming *naming)
{
    load->replaces = 0;
    switch (naming->verdict) {
    case NAME_BUSY:
        failure_set(&load->failure, WIRE_ModelBusy, describe_busy(naming->holder, load->request.peer));
        return false;
    case NAME_TAKEN:
        failure_set(&load->failure, WIRE_NameInUse, error_name(name));
        return false;
    case NAME_TOO_MANY:
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit("names", naming->limit));
        return false;
    case NAME_FREE:
    case NAME_SOON_FREE:
    case NAME_REPLACED:
        break;
    }
    if (!naming->is_new)
        return true;
    /* A model that is still being loaded takes no name from another one: its load may fail. While it waits to take one,
     * it gets no further name: how many it will have is not known yet. */
    if (model && model->load && (naming->verdict == NAME_REPLACED || model->takes[0])) {
        load->blocked = true;
        return false;
    }
    return free_name(load, name, naming);
}

int naming_give(struct load *load, const char *name, struct model *model)
{
    if (load->replaces) {
        strcpy(model->takes, name);
        if (model->state != MODEL_CACHED)
            naming_switch(load, model);
        return 0;
    }
    int r = registry_name(load->loads->registry, model, name, load->request.uid);
    if (r == 0)
        events_emit(load->loads->events, "renamed", model, NULL);
    return r;
}

void naming_switch(struct load *load, struct model *model)
{
    if (!model->takes[0])
        return;
    struct loads *loads = load->loads;
    struct model *other = load->replaces ? registry_find_id(loads->registry, load->replaces) : NULL;
    const int r = registry_take_names(loads->registry, other, model, load->replaces_all, load->request.uid);
    if (r < 0)
        log_warning("model=%s id=%" PRIu64 " has no name: %s", model->name, model->id, strerror(-r));
    events_emit(loads->events, "renamed", model, NULL);
    if (!other)
        return;
    events_emit(loads->events, "renamed", other, NULL);
    if (model_nameless(other))
        log_client(LOG_LEVEL_INFO, "model=%s id=%" PRIu64 " is replaced by id=%" PRIu64, other->name, other->id,
                   model->id);
    (void)naming_retire(loads, other);
}

bool naming_retire(struct loads *loads, struct model *model)
{
    if (!model_nameless(model) || model->load)
        return false;
    if (model->state == MODEL_CACHED && !model_in_use(model)) /* else residency_idle() forgets it */
        host_cache_forget(&loads->residency->cache, model);
    else if (model->state == MODEL_RESIDENT && model_in_use(model))
        residency_drain(loads->residency, model, 0);
    else if (model->state == MODEL_RESIDENT)
        residency_unload(loads->residency, model, NULL);
    return true;
}
