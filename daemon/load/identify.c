#include "daemon/load/naming.h"
#include "daemon/load/states.h"
#include "daemon/memory/device_choice.h"
#include "daemon/memory/residency.h"
#include "daemon/model/source_compare.h"
#include "daemon/session/attach.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/errors.h"
#include "proto/min.h"
#include "proto/model_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* If the files were opened at the model's own places, the model gets the facts that this load has read: they are what
 * anybody's load or Attach would find there now. By another path, by a further name of the file for instance, other
 * users can reach it. That says nothing of who may see the model. */
static void load_tell_facts(const struct load *load, struct model *model)
{
    struct access_facts *facts = load->job.facts;
    if (facts && registry_same_path(model, load->job.source))
        events_set_facts(load->loads->events, model, access_facts_ref(facts));
}

/* True if both are paths of entries of the same folder. */
static bool in_same_folder(const char *a, const char *b)
{
    const char *end_a = strrchr(a, '/'), *end_b = strrchr(b, '/');
    return end_a && end_b && end_a - a == end_b - b && strncmp(a, b, (size_t)(end_a - a)) == 0;
}

/* A preload that joins a model notes that its path leads to it: when the path, if it is a link, leads elsewhere one
 * day, the next preload replaces the model. Of several links in its folder the first one stays noted. A path that the
 * model was loaded by before, and that its source does not know, stays too. Without memory nothing is noted. */
static void load_note_path(const struct load *load, struct model *model)
{
    const char *path = load->request.path, *origin = model->origin;
    const struct source *source = model->source;
    if (load->request.replace != REPLACE_FILE || !path)
        return;
    const bool known = origin && ((source->link && strcmp(source->link, origin) == 0) ||
                                  (source->path && strcmp(source->path, origin) == 0));
    if (origin && (!known || in_same_folder(origin, path)))
        return;
    char *own = strdup(path);
    if (!own)
        return;
    model_set_origin(model, own);
}

/* Applies the request to a model that is there already. Only the model's user and trusted users may change its pin and
 * its time to live. */
static void load_adjust(struct load *load, struct model *model)
{
    load_note_path(load, model);
    if (load->request.access == ACCESS_PUBLIC)
        model_widen(model); /* allowed: see load_judge_join() */
    else if (load->request.access == ACCESS_PRIVATE && model->access != ACCESS_PRIVATE) /* see model_joinable() */
        events_narrow(load->loads->events, model);
    if (!load->request.trusted && load->request.uid != model->uid)
        return;
    if (load->request.pin)
        model_set_pinned(model, true);
    if (load->request.ttl >= 0)
        model_set_ttl(model, load->request.ttl);
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
        else if (kind == WAIT_LEASE || kind == WAIT_CREATE)
            attach_grant(load->loads->registry, load->loads->events, model, call, NULL);
        else
            call_reply(call, describe_loaded(model, NULL, conn_peer(call->conn)), NULL, 0);
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
            call_reply(call, describe_loaded(model, NULL, conn_peer(call->conn)), NULL, 0);
        waiters_move(&load->waiters, &other->waiters);
        other->detached |= load->detached;
        other->patience_ends = max_u64(other->patience_ends, load->patience_ends);
    } else
        waiters_grant(load, model);
    if (load->request.done)
        load->request.done(load->request.context, model, NULL);
    counters_load(&load->loads->core->counters, OUTCOME_JOINED, 0, uv_hrtime() - load->began);
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
    model->layout = layout_ref(load->request.layout);
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
        layout_unref(model->layout);
        access_facts_unref(model->facts);
        free(model->origin);
        free(model);
        return NULL;
    }
    return model;
}

bool load_wants_same(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    return model_joinable(model, request->uid, request->access == ACCESS_PRIVATE) &&
           model_same_forms(model, request->forms, request->layout, load->job.plan) &&
           source_equal(model->source, load->job.source);
}

bool load_may_publish(const struct load_request *request, const struct access_facts *facts)
{
    return request->access != ACCESS_PUBLIC || request->trusted || access_owns(facts, request->uid);
}

void load_fail_publish(struct load *load)
{
    failure_set(&load->failure, WIRE_PermissionDenied, error_reason("only who owns the file makes its model public"));
}

/* The same for a load that joins a model, which is of the same files. The model's user need not own them. */
static bool may_publish_joined(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    return request->access != ACCESS_PUBLIC || model->access == ACCESS_PUBLIC || load_may_end(request, model) ||
           access_owns(load->job.facts, request->uid);
}

enum load_verdict load_verdict_of(const struct naming *naming, enum load_verdict verdict)
{
    switch (naming->verdict) {
    case NAME_BUSY:
        return LOAD_BUSY;
    case NAME_TAKEN:
        return LOAD_TAKEN;
    case NAME_TOO_MANY:
        return LOAD_LIMITED;
    case NAME_FREE:
    case NAME_SOON_FREE:
    case NAME_REPLACED:
        break;
    }
    return verdict;
}

enum load_verdict load_judge_join(struct load *load, struct model *model, struct naming *ret)
{
    char room[MODEL_NAME_MAX + 1];
    const struct load_request *request = &load->request;
    load_tell_facts(load, model); /* first: they decide who is a guest, and who has a name */
    naming_judge(load, naming_wanted(load, model, room), model, ret);
    if (!may_publish_joined(load, model))
        return LOAD_DENIED;
    return load_verdict_of(ret, model_may_admit(model, request->peer) < 0 ? LOAD_LIMITED : LOAD_JOIN);
}

void load_fail_guests(struct load *load)
{
    failure_set(&load->failure, WIRE_LimitExceeded, error_limit("guests", MODEL_GUESTS_MAX));
}

/* Gives a model that is there already the requested name, beside those that it has. From now on the user who asked sees
 * the model. Returns false if the load has to wait, or fails. */
static bool load_enter(struct load *load, struct model *model)
{
    struct naming naming;
    if (load->request.name)
        naming_clear_lost(load, load->request.name);
    const enum load_verdict verdict = load_judge_join(load, model, &naming);
    const char *name = naming.name;
    if (verdict == LOAD_DENIED) {
        load_fail_publish(load);
        return false;
    }
    if (verdict == LOAD_LIMITED && naming.verdict != NAME_TOO_MANY) {
        load_fail_guests(load);
        return false;
    }
    if (!naming_prepare(load, name, model, &naming))
        return false;
    if (model_admit(model, load->request.peer) < 0 || (naming.is_new && naming_give(load, name, model) < 0)) {
        load_fail_memory(load);
        return false;
    }
    return true;
}

bool load_take_same(struct load *load, struct model *model)
{
    const bool compared = model->state == MODEL_CACHED && model_in_use(model);
    if (model_departs(model) || model->state == MODEL_SAVING || compared) {
        load->blocked = true;
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

void load_name(const struct load *load, char ret[MODEL_NAME_MAX + 1])
{
    if (load->request.name) {
        strcpy(ret, load->request.name);
        return;
    }
    if (load->job.source->name)
        strcpy(ret, load->job.source->name);
    else
        model_name_derive(load->job.source->path, ret);
    if (load->request.layout)
        model_name_part(ret, load->request.layout->rank, load->request.layout->parts);
}

/* Whether the user may have one more model. If not, the load fails. */
static bool load_may_add(struct load *load)
{
    struct quota_charge probe;
    uint64_t limit;
    int r = quota_take(load->loads->quota, load->request.uid, QUOTA_MODELS, 1, &probe, &limit);
    if (r < 0)
        failure_set(&load->failure, WIRE_LimitExceeded, error_quota(r, QUOTA_MODELS, limit));
    else
        quota_return(&probe);
    return r == 0;
}

struct model *load_take_name(struct load *load)
{
    char name[MODEL_NAME_MAX + 1];
    struct naming naming;
    load_name(load, name);
    naming_clear_lost(load, name);
    naming_judge(load, name, NULL, &naming);
    if (!naming_prepare(load, name, NULL, &naming))
        return NULL;
    if (!load_may_add(load))
        return NULL;
    struct model *model = load_new_model(load, name);
    if (!model)
        load_fail_memory(load);
    return model;
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

void load_fail_queued(struct load *load, const struct model *queued)
{
    struct device *device = queued->device;
    failure_set(&load->failure, WIRE_OutOfDeviceMemory,
                describe_out_of_memory(device, queued->plan->arena_bytes, device_available(device),
                                       admission_evictable(load->loads->registry, device)));
}

/* True, and the load fails, if the model of its file is queued for memory and the load may not wait, or not any longer.
 * A preload always waits. */
static bool load_comes_too_early(struct load *load, const struct registry_query *query)
{
    const struct model *model = load_queued_before(load->loads, query);
    load->behind = model != NULL;
    if (!model || load->request.done || uv_hrtime() < load->patience_ends)
        return false;
    load_fail_queued(load, model);
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
    if (!load_may_publish(&load->request, job->facts)) {
        load_fail_publish(load);
        return false;
    }
    const struct device_set *among = &load->request.among;
    load->device = device_choice_roomiest(among);
    if (!load->device) {
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(among->devices[0], "load"));
        return false;
    }
    const struct registry_query query = load_query(&load->request, job->source, job->plan);
    if (load_comes_too_early(load, &query))
        return false;
    if (load_has_to_wait(load)) {
        load->blocked = true;
        return false;
    }
    if (load_settle(load))
        return false;
    load_note_changes(load->loads, job->source);
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
    bool over = load->request.creation ? creation_identified(load) : identified(load);
    if (!over && load->blocked)
        load_job_forget(&load->job);
    return over;
}
