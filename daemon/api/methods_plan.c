/* Plan: tells what Load would do. Reads the header on a worker, then decides with the same functions as Load:
 * load_foresee() and admission_choose(). */
#include "daemon/api/files_param.h"
#include "daemon/api/load_param.h"
#include "daemon/api/methods_list.h"
#include "daemon/base/json_text.h"
#include "daemon/base/worker.h"
#include "daemon/load/failure.h"
#include "daemon/load/foresee.h"
#include "daemon/load/steps.h"
#include "daemon/memory/device_choice.h"
#include "daemon/memory/residency.h"
#include "daemon/memory/survey.h"
#include "daemon/model/calling.h"
#include "daemon/session/describe.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/params.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct planning {
    struct api *api;
    struct quota_charge charge;
    struct call *call; /* NULL once abandoned */
    struct load_job job;
    struct load_request request; /* the request that Load would get; with copies of its strings */
    uint64_t compared;           /* id of the last model whose bytes were compared with the file's */
    struct failure failure;      /* of comparing them */
};

static void planning_free(struct planning *planning)
{
    load_job_clear(&planning->job);
    failure_clear(&planning->failure);
    free((char *)(uintptr_t)planning->request.path);
    free((char *)(uintptr_t)planning->request.name);
    forms_unref(planning->request.forms);
    layout_unref(planning->request.layout);
    peer_unref(planning->request.peer);
    struct api *api = planning->api;
    quota_return(&planning->charge);
    free(planning);
    core_job_end(api->core);
}

static void planning_abandoned(struct call *call)
{
    struct planning *planning = call->context;
    planning->call = NULL;
    if (verify_drop(planning->api->verifies, planning))
        planning_free(planning);
}

static void planning_work(struct work *work)
{
    struct planning *planning = work->data;
    struct load_job *job = &planning->job;
    worker_step_back();
    load_job_identify(job);
    if (job->status < 0)
        return;
    job->opened = job->source;
    load_job_open(job); /* if it fails, planning_ends() looks whether Load would come so far */
}

/* The outcome that Load would have now. */
struct outlook {
    enum load_verdict verdict;
    struct failure failure;    /* what Load would fail with before it reads the header, if there is no plan */
    const struct plan *plan;   /* for the file; or, if its header cannot be read, that of `there` */
    const struct model *there; /* the model that the load would join, even if it is refused; NULL: none */
    const struct device *device;
    enum wire_error error; /* the error that Load would answer with; WIRE_OK: none */
    bool fits;             /* there is memory for it, even if `error` is another reason to fail */
    bool no_memory;        /* the daemon had no memory to decide this */
    struct model **victims;
    size_t n_victims;
    struct room_shortage shortage;
};

/* True if the user's quota has room for so much more. */
static bool within_quota(const struct planning *planning, enum quota_kind kind, uint64_t amount)
{
    struct quota_charge charge;
    uint64_t unused;
    if (quota_take(planning->api->quota, planning->request.uid, kind, amount, &charge, &unused) < 0)
        return false;
    quota_return(&charge);
    return true;
}

static enum wire_error error_of(int error)
{
    return error == 0 || error == -EAGAIN ? WIRE_OK : error == -ENOSPC ? WIRE_OutOfDeviceMemory : WIRE_LimitExceeded;
}

/* Decides whether there is memory for the model, with the same checks as Load. */
static void foresee_memory(struct planning *planning, struct outlook *ret)
{
    const struct api *api = planning->api;
    const struct load_job *job = &planning->job;
    const bool restores = ret->there;
    const struct plan *plan = ret->plan;
    const struct device_set *among = &planning->request.among;
    uint64_t ahead[DEVICES_MAX];
    for (size_t i = 0; i < among->n; i++)
        ahead[i] = among->devices[i]->queued;
    struct device *device =
        restores ? ret->there->device : device_choose(api->residency, among, job->device, plan, ahead);
    const struct admission_want want = {
        .host = devices_host(api->devices),
        .device = device,
        .bytes = plan->arena_bytes,
        .due = restores ? 0 : registry_due(NULL, load_overhead(job->header, plan)),
        .ahead = device->queued,
    };
    ret->device = device;
    int r = admission_choose(api->residency->registry, &want, &ret->victims, &ret->n_victims, &ret->shortage);
    ret->no_memory = r == -ENOMEM;
    ret->error = error_of(r);
    ret->fits = ret->error == WIRE_OK;
    if (!restores &&
        (!within_quota(planning, QUOTA_MODELS, 1) || !within_quota(planning, QUOTA_BYTES, want.bytes + want.due)))
        ret->error = WIRE_LimitExceeded; /* Load looks at this first */
}

/* True if the model is on its device, or on its way there: then no memory is needed. */
static bool is_loaded(const struct model *model)
{
    return model && model->state != MODEL_CACHED && model->state != MODEL_SAVING;
}

/* Returns false if Load would fail without an outlook: with ret->failure, or with the job's error. */
static bool foresee(struct planning *planning, struct outlook *ret)
{
    struct model *model;
    const struct load_job *job = &planning->job;
    struct plan *plan = job->status == 0 ? job->plan : NULL;
    *ret = (struct outlook){.plan = plan};
    ret->verdict =
        load_foresee(planning->api->loads, &planning->request, job->source, job->facts, plan, &model, &ret->failure);
    if (!plan && ret->verdict != LOAD_JOIN && ret->verdict != LOAD_RESTORE)
        return false;
    if (!plan)
        ret->plan = model->plan;
    if (!ret->plan)
        return false;
    if (ret->verdict != LOAD_QUEUED)
        ret->there = model;
    if (ret->verdict == LOAD_QUEUED || is_loaded(model)) {
        ret->device = model->device;
        ret->shortage.available = device_available(model->device);
        ret->error = ret->verdict == LOAD_QUEUED ? WIRE_OutOfDeviceMemory : WIRE_OK;
        ret->fits = ret->error == WIRE_OK;
    } else
        foresee_memory(planning, ret);
    if (ret->verdict == LOAD_BUSY)
        ret->error = WIRE_ModelBusy;
    else if (ret->verdict == LOAD_TAKEN)
        ret->error = WIRE_NameInUse;
    else if (ret->verdict == LOAD_DENIED)
        ret->error = WIRE_PermissionDenied;
    else if (ret->verdict == LOAD_LIMITED)
        ret->error = WIRE_LimitExceeded;
    if (ret->error != WIRE_OK)
        ret->n_victims = 0; /* a load that fails evicts no model */
    return true;
}

/* Seconds that Load would take; negative: unknown. */
static double seconds_of(const struct outlook *outlook)
{
    const struct plan *plan = outlook->plan;
    const struct device *device = outlook->device;
    if (outlook->verdict == LOAD_JOIN)
        return 0;
    if (outlook->verdict == LOAD_RESTORE && device->link > 0)
        return (double)plan->arena_bytes / (double)device->link;
    return device->rate > 0 ? (double)plan->model_bytes / (double)device->rate : -1;
}

static cJSON *describe_plan(const struct planning *planning, const struct outlook *outlook)
{
    const struct load_job *job = &planning->job;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "device", outlook->device->id);
    cJSON_AddStringToObject(reply, "form", forms_word(planning->request.forms->form));
    if (planning->request.forms->n_rules > 0)
        json_add_item(reply, "forms", forms_rules(planning->request.forms));
    layout_describe(planning->request.layout, reply, false);
    cJSON_AddNumberToObject(reply, "bytes", (double)outlook->plan->arena_bytes);
    cJSON_AddNumberToObject(reply, "size", (double)job->source->size);
    cJSON_AddNumberToObject(reply, "tensors",
                            (double)(job->status == 0 ? job->header : outlook->there->header)->n_tensors);
    cJSON_AddBoolToObject(reply, "fits", outlook->fits);
    if (outlook->error != WIRE_OK)
        cJSON_AddStringToObject(reply, "error", wire_error_name(outlook->error));
    else
        cJSON_AddNullToObject(reply, "error");
    cJSON_AddNumberToObject(reply, "available", (double)outlook->shortage.available);
    cJSON *evicts = cJSON_AddArrayToObject(reply, "evicts");
    const struct peer *peer = planning->request.peer;
    char room[MODEL_NAME_SIZE];
    for (size_t i = 0; i < outlook->n_victims; i++)
        if (model_visible(outlook->victims[i], peer))
            json_append(evicts, cJSON_CreateString(model_called(outlook->victims[i], peer, room)));
    const double seconds = seconds_of(outlook);
    if (seconds >= 0)
        cJSON_AddNumberToObject(reply, "seconds", seconds);
    else
        cJSON_AddNullToObject(reply, "seconds");
    if (outlook->verdict == LOAD_JOIN)
        json_add_item(reply, "model", describe_model(outlook->there, peer));
    return reply;
}

/* Fails the call: with `failure`, or with the error of comparing, which comes first in Load, or with the job's. */
static void planning_fail(struct planning *planning, struct failure *failure)
{
    if (planning->failure.error != WIRE_OK)
        failure = &planning->failure;
    if (failure->error == WIRE_OK)
        failure_set_opening(failure, &planning->job);
    call_fail(planning->call, failure->error, failure_parameters(failure));
}

static void planning_answer(struct planning *planning)
{
    struct outlook outlook = {0};
    if (!planning->job.opened || planning->failure.error != WIRE_OK || !foresee(planning, &outlook))
        planning_fail(planning, &outlook.failure);
    else if (outlook.no_memory)
        call_fail(planning->call, WIRE_LimitExceeded, error_no_memory());
    else
        call_reply(planning->call, describe_plan(planning, &outlook), NULL, 0);
    failure_clear(&outlook.failure);
    free(outlook.victims);
}

static void planning_ends(struct planning *planning)
{
    struct call *call = planning->call;
    if (call) {
        call->abandoned = NULL;
        if (planning->job.source && !planning->api->core->stopping)
            load_note_changes(planning->api->loads, planning->job.source);
        if (planning->api->core->stopping)
            call_fail(call, WIRE_ShuttingDown, NULL);
        else
            planning_answer(planning);
    }
    planning_free(planning);
}

static void planning_compared(void *context, enum compared compared, const struct failure *why);

/* Compares the file with each model that may have the same bytes, as Load would. Then answers: the answer depends on
 * the results. A file that is no model, or not one that can be loaded like this, is compared too: the one that was
 * loaded from there may have changed to it. */
static void planning_settle(struct planning *planning)
{
    const struct loads *loads = planning->api->loads;
    const struct load_job *job = &planning->job;
    struct model *model = NULL;
    while (planning->call && job->source && planning->failure.error == WIRE_OK && !planning->api->core->stopping &&
           (model = load_doubt(loads, &planning->request, job->source, job->plan, planning->compared))) {
        planning->compared = model->id;
        if (model->load || model->state == MODEL_SAVING || model_departs(model))
            continue; /* Load would wait until the model is resident, cached or gone */
        if (verify_may_compare(model) &&
            verify_compare(planning->api->verifies, model, job->source, load_may_end(&planning->request, model),
                           planning_compared, planning) == 0)
            return;
        load_doubt_ends(loads, model->id, COMPARED_NOT);
    }
    planning_ends(planning);
}

static void planning_compared(void *context, enum compared compared, const struct failure *why)
{
    struct planning *planning = context;
    load_doubt_ends(planning->api->loads, planning->compared, compared);
    if (load_doubt_fails(compared, why))
        failure_set(&planning->failure, why->error, failure_parameters(why));
    planning_settle(planning);
}

static void planning_worked(struct work *work)
{
    struct planning *planning = work->data;
    const struct device_set *among = &planning->request.among;
    for (size_t i = 0; i < among->n && planning->job.status == 0; i++)
        survey_note(among->devices[i], planning->job.reach[i]);
    planning_settle(planning);
}

/* Makes a planning that has only its request. -EDQUOT, and the limit, if its user has too many of them; -ENOMEM. */
static int planning_new(struct api *api, struct call *call, const struct load_request *request, struct planning **ret,
                        uint64_t *ret_limit)
{
    struct quota_charge charge;
    int r = quota_take(api->quota, request->uid, QUOTA_PLANS, 1, &charge, ret_limit);
    if (r < 0)
        return r;
    struct planning *planning = calloc(1, sizeof(*planning));
    char *path = request->path ? strdup(request->path) : NULL;
    char *name = request->name ? strdup(request->name) : NULL;
    if (!planning || (request->path && !path) || (request->name && !name)) {
        free(planning);
        free(path);
        free(name);
        quota_return(&charge);
        return -ENOMEM;
    }
    *planning = (struct planning){.api = api, .charge = charge, .call = call, .request = *request};
    planning->request.path = path;
    planning->request.name = name;
    forms_ref(request->forms);
    layout_ref(request->layout);
    peer_ref(request->peer);
    planning->job = (struct load_job){
        .closer = api->core->closer,
        .uid = request->uid,
        .path = path,
        .trusted = request->trusted,
        .device = device_choice_roomiest(&request->among),
        .among = &planning->request.among,
        .forms = request->forms,
        .layout = request->layout,
        .decode_on_cpu = request->decode_on_cpu,
        .published = PUBLICATION_NONE,
    };
    core_job_begin(api->core);
    *ret = planning;
    return 0;
}

/* Plan needs one device that is not lost. Returns false after the call was failed. */
static bool some_device_works(struct call *call, const struct device_set *among)
{
    if (device_choice_roomiest(among))
        return true;
    call_fail(call, WIRE_DeviceError, describe_device_lost(among->devices[0], "plan"));
    return false;
}

static const struct param plan_table[] = {LOAD_PARAM_TABLE(0), {0}};

void method_plan(struct api *api, struct call *call)
{
    struct load_param p = LOAD_PARAM_DEFAULTS;
    struct load_request request;
    if (!params_read(call, plan_table, &p) || !load_param_request(api, call, &p, &request))
        return;
    if (!some_device_works(call, &request.among)) {
        forms_unref(request.forms);
        layout_unref(request.layout);
        return;
    }
    struct planning *planning;
    uint64_t limit;
    int r = planning_new(api, call, &request, &planning, &limit);
    forms_unref(request.forms);
    layout_unref(request.layout);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_PLANS, limit));
        return;
    }
    if (p.fds && !files_param_take(call, p.fds, p.added, planning->job.fds, &planning->job.n_fds)) {
        planning_free(planning);
        return;
    }
    call->context = planning;
    call->abandoned = planning_abandoned;
    const struct work_reads reads = {.uid = request.uid};
    worker_queue_reading(api->core->queue, &planning->job.work, &reads, planning, planning_work, planning_worked);
}
