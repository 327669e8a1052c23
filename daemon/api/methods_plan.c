/* Plan: what Load would do. Reads the header on a worker, then asks the residency manager. */
#include "daemon/api/methods_plan.h"

#include "daemon/session/describe.h"
#include "daemon/load/failure.h"
#include "daemon/load/steps.h"
#include "daemon/api/methods_list.h"
#include "daemon/wire/params.h"
#include "daemon/memory/residency.h"
#include "daemon/server.h"
#include "daemon/base/users.h"
#include "daemon/base/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct planning {
    LIST_ENTRY(planning) link;
    struct server *server;
    struct call *call; /* NULL once abandoned */
    struct load_job job;
    char *path; /* NULL: by descriptor */
    enum form form;
    uid_t uid;
    bool cached; /* host memory has it */
    struct choice among;
};

static void planning_free(struct planning *planning)
{
    load_job_clear(&planning->job);
    free(planning->path);
    struct server *server = planning->server;
    LIST_REMOVE(planning, link);
    free(planning);
    server_job_end(server);
}

uint64_t plans_of(const struct server *server, uid_t uid)
{
    uint64_t n = 0;
    const struct planning *planning;
    LIST_FOREACH(planning, &server->plannings, link)
    {
        n += planning->uid == uid;
    }
    return n;
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
    struct server *server = planning->server;
    const struct plan *plan = planning->job.plan;
    const struct device *device =
        there ? there->device : choice_place(server, &planning->among, planning->job.device, plan);
    struct model **victims = NULL;
    size_t n = 0;
    struct residency_shortage shortage = {.available = device_available(device)};
    int r = there ? 0 : residency_choose(server, device, plan->arena_bytes, &victims, &n, &shortage);
    if (r == -ENOMEM)
        return NULL;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "device", device->id);
    cJSON_AddStringToObject(reply, "form", plan_form_name(planning->form));
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
            const struct model *there = registry_find_source(&planning->server->registry, planning->job.source,
                                                             planning->form, &planning->among, NULL);
            planning->cached = there && there->state == MODEL_CACHED;
            if (there && (there->state > MODEL_RESIDENT || (there->load && load_ends(there->load))))
                there = NULL; /* to be brought back, or on its way out */
            cJSON *reply = describe_plan(planning, there);
            if (reply)
                call_reply(call, reply, NULL, 0);
            else
                call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        }
    }
    planning_free(planning);
}

/* Where it begins: a plan with nothing but its request. NULL if memory is short. */
static struct planning *planning_new(struct server *server, struct call *call, const char *path, enum form form,
                                     const struct choice *among)
{
    struct planning *planning = calloc(1, sizeof(*planning));
    char *copy = path ? strdup(path) : NULL;
    if (!planning || (path && !copy)) {
        free(planning);
        free(copy);
        return NULL;
    }
    *planning = (struct planning){.server = server, .call = call, .path = copy, .form = form};
    planning->uid = conn_uid(call->conn);
    planning->among = *among;
    planning->job = (struct load_job){
        .path = copy,
        .trusted = user_trusted(planning->uid),
        .device = choice_roomiest(among),
        .among = &planning->among,
        .form = form,
        .published = PUBLICATION_NONE,
    };
    LIST_INSERT_HEAD(&server->plannings, planning, link);
    server_job_begin(server);
    return planning;
}

/* Which devices the model may go to, and whether its user may have another plan under way. Returns false after the call
 * was failed. */
static bool plan_may(struct server *server, struct call *call, const char *device, struct choice *ret_among)
{
    uint64_t limit;
    if (choice_of(server, device, ret_among) == 0)
        call_fail(call, WIRE_DeviceNotFound, describe_device_name(device));
    else if (!choice_roomiest(ret_among))
        call_fail(call, WIRE_DeviceError, describe_device_lost(ret_among->devices[0], "plan"));
    else if (!user_may(server, conn_uid(call->conn), LIMIT_PLANS, 1, &limit))
        call_fail(call, WIRE_LimitExceeded, describe_limit(user_limit_name(LIMIT_PLANS), limit));
    else
        return true;
    return false;
}

void method_plan(struct server *server, struct call *call)
{
    struct parameters {
        const cJSON *fds;
        const char *path, *form, *device;
    } p = {.form = "auto", .device = "auto"};
    static const struct param table[] = {
        {"fds", PARAM_INTS, false, offsetof(struct parameters, fds)},
        {"path", PARAM_STRING, false, offsetof(struct parameters, path)},
        {"form", PARAM_STRING, false, offsetof(struct parameters, form)},
        {"device", PARAM_STRING, false, offsetof(struct parameters, device)},
        {0},
    };
    if (!params_read(call, table, &p))
        return;
    enum form form = FORM_AUTO;
    const char *wrong = !!p.fds == !!p.path                  ? "fds"
                        : p.path && p.path[0] != '/'         ? "path"
                        : plan_form_parse(p.form, &form) < 0 ? "form"
                                                             : NULL;
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    struct choice among;
    if (!plan_may(server, call, p.device, &among))
        return;
    struct planning *planning = planning_new(server, call, p.path, form, &among);
    if (!planning) {
        call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        return;
    }
    if (p.fds && !call_take_fds(call, p.fds, planning->job.fds, &planning->job.n_fds)) {
        planning_free(planning);
        return;
    }
    call->context = planning;
    call->abandoned = planning_abandoned;
    worker_queue(server->loop, &planning->job.work, planning, planning_work, planning_worked);
}
