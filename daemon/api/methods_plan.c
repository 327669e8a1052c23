/* Plan: what Load would do. Reads the header on a worker, then asks the residency manager. */
#include "daemon/api/forms_param.h"
#include "daemon/api/methods_list.h"
#include "daemon/base/trust.h"
#include "daemon/base/worker.h"
#include "daemon/load/failure.h"
#include "daemon/load/steps.h"
#include "daemon/memory/placement.h"
#include "daemon/memory/residency.h"
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
    char *path; /* NULL: by descriptor */
    const struct forms *forms;
    uid_t uid;
    bool cached; /* host memory has it */
    struct device_set among;
};

static void planning_free(struct planning *planning)
{
    load_job_clear(&planning->job);
    free(planning->path);
    forms_unref(planning->forms);
    struct api *api = planning->api;
    quota_return(&planning->charge);
    free(planning);
    core_job_end(api->core);
}

static void planning_abandoned(struct call *call)
{
    struct planning *planning = call->context;
    planning->call = NULL;
}

static void planning_work(uv_work_t *work)
{
    struct planning *planning = work->data;
    struct load_job *job = &planning->job;
    worker_step_back();
    load_job_identify(job);
    if (job->status < 0)
        return;
    job->opened = job->source;
    load_job_lay_out(job);
    if (job->status == 0)
        (void)load_job_ask(job);
}

/* NULL if memory is short. */
static cJSON *describe_plan(struct planning *planning, const struct model *there)
{
    struct api *api = planning->api;
    const struct plan *plan = planning->job.plan;
    const struct device *device =
        there ? there->device : placement_choose(api->residency, &planning->among, planning->job.device, plan);
    struct model **victims = NULL;
    size_t n = 0;
    struct residency_shortage shortage = {.available = device_available(device)};
    int r = there ? 0 : residency_choose(api->residency, device, plan->arena_bytes, &victims, &n, &shortage);
    if (r == -ENOMEM)
        return NULL;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "device", device->id);
    cJSON_AddStringToObject(reply, "form", forms_word(planning->forms->form));
    if (planning->forms->n_rules > 0)
        cJSON_AddItemToObject(reply, "forms", forms_rules(planning->forms));
    cJSON_AddNumberToObject(reply, "bytes", (double)plan->arena_bytes);
    cJSON_AddNumberToObject(reply, "size", (double)planning->job.source->size);
    cJSON_AddNumberToObject(reply, "tensors", (double)planning->job.header->n_tensors);
    cJSON_AddBoolToObject(reply, "fits", r == 0 || r == -EAGAIN);
    cJSON_AddNumberToObject(reply, "available", (double)shortage.available);
    cJSON *evicts = cJSON_AddArrayToObject(reply, "evicts");
    for (size_t i = 0; i < n; i++)
        if (model_visible(victims[i], planning->uid))
            cJSON_AddItemToArray(evicts, cJSON_CreateString(victims[i]->name));
    free(victims);
    if (there)
        cJSON_AddNumberToObject(reply, "seconds", 0);
    else if (planning->cached && device->link > 0)
        cJSON_AddNumberToObject(reply, "seconds", (double)plan->arena_bytes / (double)device->link);
    else if (device->rate > 0)
        cJSON_AddNumberToObject(reply, "seconds", (double)plan->model_bytes / (double)device->rate);
    else
        cJSON_AddNullToObject(reply, "seconds");
    if (there)
        cJSON_AddItemToObject(reply, "model", describe_model(there));
    return reply;
}

/* Fails the call for what the job found. */
static void planning_fail(struct planning *planning)
{
    struct failure failure = {0};
    failure_set_opening(&failure, &planning->job);
    call_fail(planning->call, failure.error, failure_parameters(&failure));
    failure_clear(&failure);
}

static void planning_worked(uv_work_t *work, int status)
{
    (void)status;
    struct planning *planning = work->data;
    struct call *call = planning->call;
    for (size_t i = 0; i < planning->among.n && planning->job.status == 0; i++)
        if (planning->job.free[i] != UINT64_MAX)
            planning->among.devices[i]->free = planning->job.free[i];
    if (call) {
        call->abandoned = NULL;
        if (planning->job.status < 0)
            planning_fail(planning);
        else {
            const struct registry_query query = {.source = planning->job.source,
                                                 .forms = planning->forms,
                                                 .plan = planning->job.plan,
                                                 .among = &planning->among};
            const struct model *there = registry_find_source(planning->api->registry, &query);
            planning->cached = there && there->state == MODEL_CACHED;
            if (there && (there->state > MODEL_RESIDENT || there->departs))
                there = NULL; /* to be brought back, or on its way out */
            cJSON *reply = describe_plan(planning, there);
            if (reply)
                call_reply(call, reply, NULL, 0);
            else
                call_fail(call, WIRE_LimitExceeded, error_no_memory());
        }
    }
    planning_free(planning);
}

/* Where it begins: a plan with nothing but its request. -EDQUOT, and the limit, if its user has too many; -ENOMEM. */
static int planning_new(struct api *api, struct call *call, const char *path, const struct forms *forms,
                        const struct device_set *among, struct planning **ret, uint64_t *ret_limit)
{
    const uid_t uid = conn_uid(call->conn);
    struct quota_charge charge;
    int r = quota_take(api->quota, uid, QUOTA_PLANS, 1, &charge, ret_limit);
    if (r < 0)
        return r;
    struct planning *planning = calloc(1, sizeof(*planning));
    char *copy = path ? strdup(path) : NULL;
    if (!planning || (path && !copy)) {
        free(planning);
        free(copy);
        quota_return(&charge);
        return -ENOMEM;
    }
    *planning = (struct planning){
        .api = api, .charge = charge, .call = call, .path = copy, .forms = forms_ref(forms), .uid = uid};
    planning->among = *among;
    planning->job = (struct load_job){
        .path = copy,
        .trusted = trusted_user(uid),
        .device = placement_roomiest(among),
        .among = &planning->among,
        .forms = planning->forms,
        .published = PUBLICATION_NONE,
    };
    core_job_begin(api->core);
    *ret = planning;
    return 0;
}

/* Which devices the model may go to. Returns false after the call was failed. */
static bool plan_choose(struct api *api, struct call *call, const char *device, struct device_set *ret_among)
{
    if (devices_named(api->devices, device, ret_among) == 0)
        call_fail(call, WIRE_DeviceNotFound, error_device(device));
    else if (!placement_roomiest(ret_among))
        call_fail(call, WIRE_DeviceError, describe_device_lost(ret_among->devices[0], "plan"));
    else
        return true;
    return false;
}

void method_plan(struct api *api, struct call *call)
{
    struct parameters {
        const cJSON *fds, *forms;
        const char *path, *form, *device;
    } p = {.form = "auto", .device = "auto"};
    static const struct param table[] = {
        {"fds", PARAM_INTS, false, offsetof(struct parameters, fds)},
        {"path", PARAM_STRING, false, offsetof(struct parameters, path)},
        {"form", PARAM_STRING, false, offsetof(struct parameters, form)},
        {"forms", PARAM_ARRAY, false, offsetof(struct parameters, forms)},
        {"device", PARAM_STRING, false, offsetof(struct parameters, device)},
        {0},
    };
    if (!params_read(call, table, &p))
        return;
    enum form form = FORM_AUTO;
    const char *wrong = !!p.fds == !!p.path                   ? "fds"
                        : p.path && p.path[0] != '/'          ? "path"
                        : forms_word_parse(p.form, &form) < 0 ? "form"
                                                              : NULL;
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    struct device_set among;
    const struct forms *forms = NULL;
    if (!plan_choose(api, call, p.device, &among) || !forms_param_read(call, form, p.forms, &forms))
        return;
    struct planning *planning;
    uint64_t limit;
    int r = planning_new(api, call, p.path, forms, &among, &planning, &limit);
    forms_unref(forms);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded,
                  r == -EDQUOT ? error_limit(quota_name(QUOTA_PLANS), limit) : error_no_memory());
        return;
    }
    if (p.fds && !call_take_fds(call, p.fds, planning->job.fds, &planning->job.n_fds)) {
        planning_free(planning);
        return;
    }
    call->context = planning;
    call->abandoned = planning_abandoned;
    worker_queue(api->core->loop, &planning->job.work, planning, planning_work, planning_worked);
}
