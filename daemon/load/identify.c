#include "daemon/base/log.h"
#include "daemon/load/states.h"
#include "daemon/memory/placement.h"
#include "daemon/memory/residency.h"
#include "daemon/session/attach.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum name_verdict {
    NAME_FREE,
    NAME_SOON_FREE, /* its model will be gone or cached soon */
    NAME_REPLACED,  /* its model loses it when the new model is resident */
    NAME_BUSY,      /* a model of the same file has it, and is draining or lost */
    NAME_TAKEN,     /* another model has it, and keeps it */
};

/* Applies the request to a model that is there already. Only the model's user and trusted users may change its pin and
 * its time to live. */
static void load_adjust(struct load *load, struct model *model)
{
    /* A client may pass a file whose folders the daemon cannot find. Such facts do not replace facts with folders. */
    const bool less = load->job.facts && !load->job.facts->placed && model->facts && model->facts->placed;
    if (load->job.facts && !less) {
        model_set_facts(model, load->job.facts);
        load->job.facts = NULL;
    }
    if (load->request.access == ACCESS_PUBLIC)
        model->access = ACCESS_PUBLIC; /* allowed: see may_publish_joined() */
    if (!load->request.trusted && load->request.uid != model->uid)
        return;
    model->pinned |= load->request.pin;
    if (load->request.ttl >= 0)
        model->ttl = load->request.ttl;
}

void load_begin_restore(struct load *load, struct model *model)
{
    load_adjust(load, model);
    load_job_forget(&load->job); /* the model has its own; these would be in no ledger */
    load->restores = true;
    load->model = model;
    load->device = load->job.device = model->device;
    load->job.among = &load->request.among; /* only that device */
    load->request.among = (struct device_set){.devices = {model->device}, .n = 1};
    model->load = load;
    load_show(load, LOAD_RESERVING, MODEL_ALLOCATING);
    events_emit(load->loads->events, "loading", model, NULL);
    load_queue(load, load_job_ask); /* load_reserve() follows when the drivers have answered */
}

/* The model is resident: answers all calls that wait for this load. */
static void waiters_grant(struct load *load, struct model *model)
{
    enum waiter_kind kind;
    struct call *call;
    while ((call = waiters_take_any(&load->waiters, &kind))) {
        if (kind == WAIT_ATTACH)
            load_attach(load->loads, model, call);
        else if (kind == WAIT_LEASE)
            attach_grant(load->loads->registry, load->loads->events, model, call, NULL);
        else
            call_reply(call, describe_loaded(model, NULL), NULL, 0);
    }
}

/* The model is resident, or another load of it is under way. All calls of this load join that model, and this load
 * ends. */
static void load_join(struct load *load, struct model *model)
{
    struct load *other = model->load;
    load_adjust(load, model);
    struct call *call;
    if (other) {
        while (other->state >= LOAD_FILLING && (call = waiters_take(&load->waiters, WAIT_ALLOCATED)))
            call_reply(call, describe_loaded(model, NULL), NULL, 0);
        waiters_move(&load->waiters, &other->waiters);
        other->detached |= load->detached;
        if (other->patience_ends < load->patience_ends)
            other->patience_ends = load->patience_ends;
    } else
        waiters_grant(load, model);
    if (load->request.done)
        load->request.done(load->request.context, model, NULL);
    model->idle_since = uv_hrtime();
    residency_idle(load->loads->residency, model);
    load_move(load, LOAD_DONE);
    load_free(load);
}

/* Adds a new model of this name to the registry. NULL if memory is short. */
static struct model *load_new_model(struct load *load, const char *name)
{
    struct model *model = calloc(1, sizeof(*model));
    if (!model)
        return NULL;
    strcpy(model->name, name);
    if (load->replaces)
        strcpy(model->takes, name);
    model->origin = load->request.path ? strdup(load->request.path) : NULL;
    model->forms = forms_ref(load->request.forms);
    model->device = load->device;
    model->uid = load->request.uid;
    model->pinned = load->request.pin;
    model->ttl = load->request.ttl;
    model->access = load->request.access;
    model->source = load->job.source;
    load->job.source = NULL;
    model->published = PUBLICATION_NONE;
    model->export.fd = -1;
    model->load = load;
    LIST_INIT(&model->leases);
    model->facts = load->job.facts;
    load->job.facts = NULL;
    if (registry_add(load->loads->registry, model) < 0) {
        source_free(model->source);
        forms_unref(model->forms);
        access_facts_unref(model->facts);
        free(model->origin);
        free(model);
        return NULL;
    }
    return model;
}

/* True if this load would make the same model: of the same files, in the same forms, for the same users. */
static bool load_wants_same(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    const bool private = request->access == ACCESS_PRIVATE;
    return model_same_forms(model, request->forms, load->job.plan) && private == (model->access == ACCESS_PRIVATE) &&
           (!private || model->uid == request->uid) && source_equal(model->source, load->job.source);
}

/* Unloads models whose device was lost, if nobody uses them, and they have this name or are of this load's file. They
 * have nothing left to keep. They are gone soon, not at once. */
static void load_clear_lost(const struct load *load, const char *name)
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

/* True if a cached model may be dropped to reuse its name: by its user or a trusted user, unless it is pinned; by
 * anybody if its device is lost, for then it cannot be loaded again. Nobody uses a cached model. */
static bool load_may_forget(const struct load *load, const struct model *model)
{
    if (model->state != MODEL_CACHED)
        return false;
    return model->device->failed || (!model->pinned && (load->request.trusted || load->request.uid == model->uid));
}

/* True if the model was loaded from the path that this load reads. */
static bool is_same_path(const struct load *load, const struct model *model)
{
    const char *now = load->job.source->path;
    if (load->request.path && model->origin && strcmp(model->origin, load->request.path) == 0)
        return true;
    return now && model->source->path && strcmp(model->source->path, now) == 0;
}

/* True if the model may lose its name to this load's model, and drain, when this load's model is resident. */
static bool load_may_replace(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    if (model->load || model->takes[0] || (!request->trusted && request->uid != model->uid))
        return false;
    if (request->replace == REPLACE_NAME)
        return true;
    if (request->replace == REPLACE_FILE)
        return request->uid == model->uid && is_same_path(load, model);
    return model->changed && is_same_path(load, model) && !model_in_use(model) && !model->pinned;
}

/* Decides whether this load may have the name that `model` has. NULL: no model has the name. */
static enum name_verdict judge_name(const struct load *load, const struct model *model)
{
    if (!model || load_may_forget(load, model))
        return NAME_FREE;
    if (model_departs(model) || model->state == MODEL_SAVING)
        return NAME_SOON_FREE;
    if ((model->state == MODEL_DRAINING || model->state == MODEL_FAILED) && load_wants_same(load, model))
        return NAME_BUSY;
    return load_may_replace(load, model) ? NAME_REPLACED : NAME_TAKEN;
}

/* Frees the name for this load's model. Returns false if the load must wait for the name (blocked), or failed. */
static bool load_free_name(struct load *load, const char *name)
{
    struct model *model = registry_holder(load->loads->registry, name, load->request.peer);
    load->replaces = 0;
    switch (judge_name(load, model)) {
    case NAME_FREE:
        if (model)
            residency_forget(load->loads->residency, model);
        return true;
    case NAME_REPLACED:
        if (registry_taker(load->loads->registry, name, load->request.peer)) {
            load->blocked = true; /* and then that is the one to replace, unless its load fails */
            return false;
        }
        load->replaces = model->id;
        return true;
    case NAME_SOON_FREE:
        load->blocked = true;
        break;
    case NAME_BUSY:
        failure_set(&load->failure, WIRE_ModelBusy, describe_busy(model));
        break;
    case NAME_TAKEN:
        failure_set(&load->failure, WIRE_NameInUse, error_name(name));
        break;
    }
    return false;
}

/* Gives the model the name that it takes from another. The other model loses this name; it loses all its names if its
 * file has changed, or if both requests had the same path. If it has no name left, it is drained, unloaded or
 * dropped. */
static void load_take_names(struct load *load, struct model *model)
{
    struct loads *loads = load->loads;
    struct model *other = load->replaces ? registry_find_id(loads->registry, load->replaces) : NULL;
    const bool all =
        other && (other->changed || (other->origin && model->origin && strcmp(other->origin, model->origin) == 0));
    const int r = registry_take_names(loads->registry, other, model, all);
    if (r < 0)
        log_warning("model=%s id=%" PRIu64 " has no name: %s", model->name, model->id, strerror(-r));
    events_emit(loads->events, "renamed", model, NULL);
    if (!other)
        return;
    events_emit(loads->events, "renamed", other, NULL);
    if (!model_nameless(other))
        return;
    log_client(LOG_LEVEL_INFO, "model=%s id=%" PRIu64 " is replaced by id=%" PRIu64, other->name, other->id, model->id);
    if (other->state == MODEL_CACHED)
        residency_forget(loads->residency, other);
    else if (other->state == MODEL_RESIDENT && model_in_use(other))
        residency_drain(loads->residency, other, 0);
    else if (other->state == MODEL_RESIDENT)
        residency_unload(loads->residency, other, NULL);
}

void load_switch(struct load *load)
{
    if (load->model->takes[0])
        load_take_names(load, load->model);
}

/* Only who owns the files, or rules the machine or the daemon, may have everybody see what is in them. */
static bool may_publish(const struct load_request *request, const struct access_facts *facts)
{
    return request->access != ACCESS_PUBLIC || request->trusted || access_owns(facts, request->uid);
}

static void load_fail_publish(struct load *load)
{
    failure_set(&load->failure, WIRE_PermissionDenied, error_reason("only who owns the file makes its model public"));
}

/* The same of a model that is there: by its own files. Its user may not have been the one who owns them. */
static bool may_publish_joined(const struct load_request *request, const struct model *model)
{
    return request->access != ACCESS_PUBLIC || model->access == ACCESS_PUBLIC || load_may_end(request, model) ||
           access_owns(model->facts, request->uid);
}

/* A model that is there already gets the name that was asked for, beside those that it has, and is seen from now on by
 * whoever asked. Returns false if the name has to be waited for, or something cannot be. */
static bool load_enter(struct load *load, struct model *model)
{
    const char *name = load->request.name;
    const bool is_new = name && !model_has_name(model, name) && strcmp(model->takes, name) != 0;
    if (is_new && !load_free_name(load, name))
        return false;
    int r = model_admit(model, load->request.peer);
    if (r == -EMLINK) {
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit("guests", MODEL_GUESTS_MAX));
        return false;
    }
    if (r == 0 && is_new && load->replaces) {
        strcpy(model->takes, name);
        load_take_names(load, model);
    } else if (r == 0 && is_new)
        r = registry_name(load->loads->registry, model, name, load->request.uid);
    if (r == -EMLINK)
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit("names", MODEL_NAMES_MAX));
    else if (r == -EDQUOT)
        failure_set(&load->failure, WIRE_LimitExceeded, error_limit("names", MODEL_GIVEN_MAX));
    else if (r < 0)
        load_fail_memory(load);
    else if (is_new)
        events_emit(load->loads->events, "renamed", model, NULL);
    return r == 0;
}

/* Goes on with a model that is there already, or waits for it. Returns true if the load joined it, and was freed. */
static bool load_take_same(struct load *load, struct model *model)
{
    if (model_departs(model) || model->state == MODEL_SAVING) {
        load->blocked = true;
        return false;
    }
    if (!may_publish_joined(&load->request, model)) {
        load_fail_publish(load);
        return false;
    }
    if (!load_enter(load, model))
        return false;
    if (model->state != MODEL_CACHED) {
        load_join(load, model);
        return true;
    }
    load_begin_restore(load, model);
    return false;
}

/* Goes on when the model that this load waited for was saved to host memory, or is gone. Returns true if the load
 * joined it, and was freed. */
static bool load_saved(struct load *load)
{
    struct model *model = registry_find_id(load->loads->registry, load->awaited);
    if (!model) {
        failure_set(&load->failure, WIRE_ModelNotFound, error_name(load->awaited_name));
        return false;
    }
    return load_take_same(load, model);
}

/* Makes the load's model, with the name in the request or one derived from the file's. NULL if the load must wait for
 * the name (blocked), or failed. */
static struct model *load_take_name(struct load *load)
{
    char derived[MODEL_NAME_MAX + 1];
    if (!load->request.name)
        model_name_derive(load->job.source->path, derived);
    const char *name = load->request.name ? load->request.name : derived;
    load_clear_lost(load, name);
    if (!load_free_name(load, name))
        return NULL;
    struct model *model = load_new_model(load, name);
    if (!model)
        load_fail_memory(load);
    return model;
}

/* Whether a model that is there may have the name that was asked for as well. */
static enum load_verdict foresee_joined(const struct load *load, struct model *model, enum load_verdict verdict,
                                        struct model **ret_model)
{
    if (!may_publish_joined(&load->request, model))
        return LOAD_DENIED;
    const char *name = load->request.name;
    struct model *holder =
        !name || model_has_name(model, name) ? NULL : registry_holder(load->loads->registry, name, load->request.peer);
    *ret_model = holder;
    switch (judge_name(load, holder)) {
    case NAME_BUSY:
        return LOAD_BUSY;
    case NAME_TAKEN:
        return LOAD_TAKEN;
    case NAME_FREE:
    case NAME_REPLACED:
    case NAME_SOON_FREE:
        break;
    }
    *ret_model = model;
    return verdict;
}

enum load_verdict load_foresee(struct loads *loads, const struct load_request *request, struct source *source,
                               const struct access_facts *facts, struct plan *plan, struct model **ret_model)
{
    struct load load = {.loads = loads, .request = *request, .job = {.source = source}};
    *ret_model = NULL;
    if (!may_publish(request, facts))
        return LOAD_DENIED;
    char derived[MODEL_NAME_MAX + 1];
    if (!request->name)
        model_name_derive(source->path, derived);
    /* Load has a plan at this point only if there are models that were asked for in other words: see load_compares().
     */
    struct registry_query query = load_query(request, source, facts, NULL);
    struct model *model = registry_find_source(loads->registry, &query);
    if (!model && registry_find_other(loads->registry, &query, false)) {
        load.job.plan = plan;
        query.plan = plan;
        model = registry_find_source(loads->registry, &query);
    }
    *ret_model = load_queued_before(loads, &query);
    if (*ret_model)
        return LOAD_QUEUED;
    *ret_model = model;
    if (model && (model->state == MODEL_CACHED || model->state == MODEL_SAVING))
        return foresee_joined(&load, model, LOAD_RESTORE, ret_model);
    if (model && !model_departs(model))
        return foresee_joined(&load, model, LOAD_JOIN, ret_model);
    model = registry_holder(loads->registry, request->name ? request->name : derived, request->peer);
    *ret_model = NULL;
    if (model && model->state == MODEL_FAILED && !model_in_use(model))
        return LOAD_NEW; /* load_clear_lost() would unload it */
    *ret_model = model;
    switch (judge_name(&load, model)) {
    case NAME_BUSY:
        return LOAD_BUSY;
    case NAME_TAKEN:
        return LOAD_TAKEN;
    case NAME_FREE:
    case NAME_REPLACED:
    case NAME_SOON_FREE:
        break;
    }
    *ret_model = NULL;
    return LOAD_NEW;
}

/* True if `other` is another load of the same model, and has not chosen its device yet. */
static bool load_undecided(const struct load *load, const struct load *other)
{
    return other != load && other->model && !load_ends(other) && !other->reserved && !other->restores &&
           load_wants_same(load, other->model);
}

/* True if another load of the same model has not chosen its device yet, and has a different list of devices that
 * overlaps with ours. Then we wait: its choice decides whether we join it. */
static bool load_has_to_wait(const struct load *load)
{
    const struct device_set *among = &load->request.among;
    const struct load *other;
    TAILQ_FOREACH(other, &load->loads->list, link)
    {
        if (load_undecided(load, other) && device_set_overlap(among, &other->request.among) &&
            !device_set_equal(among, &other->request.among))
            return true;
    }
    return false;
}

/* There may be models of the same file whose forms are written differently, but give the same type for each tensor.
 * Only the plans show that. Makes this load's plan, or waits until the other models have theirs. Returns false if there
 * is no such model, or all plans were compared. */
static bool load_compares(struct load *load, const struct registry_query *query)
{
    struct load_job *job = &load->job;
    if (!registry_find_other(load->loads->registry, query, job->plan != NULL))
        return false;
    if (job->plan) {
        load->blocked = true;
        return true;
    }
    job->opened = job->source;
    job->device = load->device;
    load_queue(load, load_job_lay_out);
    return true;
}

/* True, and the load fails, if the model of its file is queued for memory and the load may not wait, or not any longer.
 * A preload always waits. */
static bool load_comes_too_early(struct load *load, const struct registry_query *query)
{
    const struct model *model = load_queued_before(load->loads, query);
    load->behind = model != NULL;
    if (!model || load->request.done || uv_hrtime() < load->patience_ends)
        return false;
    struct device *device = model->device;
    failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                describe_out_of_memory(device, model->plan->arena_bytes, device_available(device),
                                       admission_evictable(load->loads->registry, device)));
    return true;
}

static bool identified(struct load *load)
{
    if (load->awaited)
        return load_saved(load);
    struct load_job *job = &load->job;
    if (job->status < 0) {
        failure_set_opening(&load->failure, job);
        return false;
    }
    if (!may_publish(&load->request, job->facts)) {
        load_fail_publish(load);
        return false;
    }
    const struct device_set *among = &load->request.among;
    load->device = placement_roomiest(among);
    if (!load->device) {
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(among->devices[0], "load"));
        return false;
    }
    const struct registry_query query = load_query(&load->request, job->source, job->facts, job->plan);
    if (load_comes_too_early(load, &query))
        return false;
    if (load_has_to_wait(load)) {
        load->blocked = true;
        return false;
    }
    if (load_settle(load))
        return false;
    load_note_changes(load->loads, &load->request, job->source, job->facts);
    struct model *same = registry_find_source(load->loads->registry, &query);
    if (same)
        return load_take_same(load, same);
    if (load_compares(load, &query))
        return false;
    load->model = load_take_name(load);
    if (!load->model)
        return false;
    load_job_forget(job);
    load_show(load, LOAD_OPENING, MODEL_OPENING);
    events_emit(load->loads->events, "loading", load->model, NULL);
    job->opened = load->model->source;
    job->device = load->device;
    job->among = among;
    job->decode_on_cpu = load->request.decode_on_cpu;
    load_queue(load, load_job_open);
    return false;
}

/* Frees header and plan while the load waits: their bytes are in no ledger yet. */
bool load_identified(struct load *load)
{
    bool over = identified(load);
    if (!over && load->blocked)
        load_job_forget(&load->job);
    return over;
}
