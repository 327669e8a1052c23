/* The methods about one model: Load, Unload, Cancel, Attach, Detach, Verify, Pin, Unpin, SetTtl. */
#include "daemon/api/files_param.h"
#include "daemon/api/load_param.h"
#include "daemon/api/methods_list.h"
#include "daemon/base/log.h"
#include "daemon/load/load.h"
#include "daemon/load/verify.h"
#include "daemon/memory/residency.h"
#include "daemon/session/attach.h"
#include "daemon/session/describe.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/params.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Reads the parameters into `parameters`, and finds the model called *name, which is one of them. NULL after the call
 * was failed. */
static struct model *find_model(struct api *api, struct call *call, const struct param *table, void *parameters,
                                const char **name)
{
    if (!params_read(call, table, parameters))
        return NULL;
    struct model *model = registry_find(api->registry, *name, conn_peer(call->conn));
    if (!model)
        call_fail(call, WIRE_ModelNotFound, error_name(*name));
    return model;
}

static bool may_end(const struct call *call, const struct model *model)
{
    return model_may_end(model, conn_uid(call->conn));
}

/* Initial value of the parameter "ttl": the client sent none. */
#define TTL_NOT_SAID INT64_MIN

/* If the client sent no time to live, sets it to -1: for ever. Returns false if the client sent a negative one. */
static bool ttl_read(int64_t *ttl)
{
    if (*ttl == TTL_NOT_SAID)
        *ttl = -1;
    else if (*ttl < 0)
        return false;
    return true;
}

static bool refuse_stopping(const struct api *api, struct call *call)
{
    if (api->core->stopping)
        call_fail(call, WIRE_ShuttingDown, NULL);
    return api->core->stopping;
}

struct load_parameters {
    struct load_param file; /* the parameters that Plan has too */
    bool wait, lease, table, header, pin, trace;
    int64_t ttl;
    double wait_for_memory, deadline;
};

static const struct param load_table[] = {
    LOAD_PARAM_TABLE(offsetof(struct load_parameters, file)),
    {"wait", PARAM_BOOL, false, offsetof(struct load_parameters, wait)},
    {"waitForMemory", PARAM_SECONDS, false, offsetof(struct load_parameters, wait_for_memory)},
    {"lease", PARAM_BOOL, false, offsetof(struct load_parameters, lease)},
    /* attach_grant() reads "table" and "header" again, from the call. */
    {"table", PARAM_BOOL, false, offsetof(struct load_parameters, table)},
    {"header", PARAM_BOOL, false, offsetof(struct load_parameters, header)},
    {"pin", PARAM_BOOL, false, offsetof(struct load_parameters, pin)},
    {"ttl", PARAM_INT, false, offsetof(struct load_parameters, ttl)},
    {"deadline", PARAM_SECONDS, false, offsetof(struct load_parameters, deadline)},
    {"trace", PARAM_BOOL, false, offsetof(struct load_parameters, trace)},
    {0},
};

/* The name of the first parameter with an invalid value, of those that Plan does not have; NULL: all are valid. */
static const char *load_wrong_parameter(struct load_parameters *p)
{
    if (p->lease && !p->wait)
        return "lease"; /* no lease before the model is resident */
    if (p->table && !p->lease)
        return "table";
    if (p->header && !p->lease)
        return "header";
    return ttl_read(&p->ttl) ? NULL : "ttl";
}

void method_load(struct api *api, struct call *call)
{
    struct load_parameters p = {.file = LOAD_PARAM_DEFAULTS, .wait = true, .ttl = TTL_NOT_SAID};
    if (!params_read(call, load_table, &p) || refuse_stopping(api, call))
        return;
    const char *wrong = load_wrong_parameter(&p);
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    struct load_request request;
    if (!load_param_request(api, call, &p.file, &request))
        return;
    int fds[SOURCE_FILES_MAX];
    if (p.file.fds && !files_param_take(call, p.file.fds, p.file.added, fds, &request.n_fds)) {
        forms_unref(request.forms);
        layout_unref(request.layout);
        return;
    }
    request.fds = p.file.fds ? fds : NULL;
    request.wait = p.wait;
    request.lease = p.lease;
    request.wait_for_memory = p.wait_for_memory;
    request.pin = p.pin;
    request.ttl = p.ttl;
    request.trace = p.trace;
    call_set_deadline(call, p.deadline);
    load_begin(api->loads, &request, call);
    forms_unref(request.forms);
    layout_unref(request.layout);
}

struct name_and_deadline {
    const char *name;
    double deadline;
};

static const struct param name_and_deadline[] = {
    {"name", PARAM_STRING, true, offsetof(struct name_and_deadline, name)},
    {"deadline", PARAM_SECONDS, false, offsetof(struct name_and_deadline, deadline)},
    {0},
};

static const struct param name_only[] = {{"name", PARAM_STRING, true, 0}, {0}};

/* The user who gave the model this name may remove it, and so may users who may end the model. If the model has no
 * other name, that would end it: then only these may. */
static bool may_unname(const struct call *call, const struct model *model, const char *name)
{
    const struct model_name *own = model_find_name(model, name);
    return (own && own->uid == conn_uid(call->conn) && model->n_names > 1) || may_end(call, model);
}

/* Removes this name, and answers, if the model has other names too. Returns false, and does nothing, if this is its
 * only name, if `name` is its id, or if the caller may not remove it. */
static bool unload_name(struct api *api, struct call *call, struct model *model, const char *name)
{
    if (!model_has_name(model, name) || model->n_names == 1 || !may_unname(call, model, name))
        return false;
    (void)registry_unname(model, name);
    events_emit(api->events, "renamed", model, NULL);
    call_reply(call, describe_state("named"), NULL, 0);
    return true;
}

void method_unload(struct api *api, struct call *call)
{
    struct parameters {
        const char *name;
        bool force;
        double deadline;
    } p = {0};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"force", PARAM_BOOL, false, offsetof(struct parameters, force)},
        {"deadline", PARAM_SECONDS, false, offsetof(struct parameters, deadline)},
        {0},
    };
    struct model *model = find_model(api, call, table, &p, &p.name);
    if (!model || unload_name(api, call, model, p.name))
        return;
    bool settled = model->state == MODEL_RESIDENT || model->state == MODEL_DRAINING || model->state == MODEL_FAILED ||
                   model->state == MODEL_CACHED;
    if (!may_end(call, model))
        call_fail(call, WIRE_PermissionDenied,
                  error_reason(model->n_names == 1 && model_has_name(model, p.name)
                                   ? "another user loaded this model, and it has no other name"
                                   : "another user loaded this model"));
    else if (!settled || (model_in_use(model) && !p.force))
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
    else if (!model_in_use(model)) {
        call_set_deadline(call, p.deadline);
        residency_unload(api->residency, model, call);
    } else if (model->state == MODEL_CACHED) { /* it is being compared with its file, and goes when that is over */
        model_lose_name(model);
        events_emit(api->events, "renamed", model, NULL);
        call_reply(call, describe_state("draining"), NULL, 0);
    } else {
        residency_drain(api->residency, model, p.deadline);
        call_reply(call, describe_state("draining"), NULL, 0);
    }
}

void method_cancel(struct api *api, struct call *call)
{
    struct name_and_deadline p = {0};
    struct model *model = find_model(api, call, name_and_deadline, &p, &p.name);
    if (!model)
        return;
    call_set_deadline(call, p.deadline);
    if (!model->load)
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
    else if (!may_end(call, model))
        call_fail(call, WIRE_PermissionDenied, error_reason("another user loads this model"));
    else
        load_end(model->load, WIRE_Cancelled, call);
}

/* Attaches. It was checked that the caller may. */
static void attach(struct api *api, struct model *model, struct call *call)
{
    if (model->state == MODEL_CACHED || model->state == MODEL_SAVING)
        load_restore(api->loads, model, call, WAIT_ATTACH);
    else if (model->load && !load_ends(model->load))
        load_wait(model->load, call, WAIT_ATTACH);
    else
        attach_grant(api->registry, api->events, model, call, NULL);
}

static const char *name_of(const struct call *call)
{
    return cJSON_GetObjectItemCaseSensitive(call->parameters, "name")->valuestring;
}

/* The facts about the model's files are new: checks again whether the caller may attach. */
static void attach_rechecked(void *context, uint64_t id, struct model *model, struct call *call)
{
    (void)id;
    struct api *api = context;
    if (!model || !model_attachable(model, conn_peer(call->conn)))
        call_fail(call, WIRE_ModelNotFound, error_name(name_of(call)));
    else if (!refuse_stopping(api, call))
        attach(api, model, call);
}

/* The caller sees the model. */
static void attach_seen(struct api *api, struct model *model, struct call *call)
{
    if (refuse_stopping(api, call))
        return;
    if (!model_attachable(model, conn_peer(call->conn)))
        call_fail(call, WIRE_PermissionDenied, error_reason("another user's private model"));
    else if (model->access == ACCESS_PUBLIC || may_end(call, model))
        attach(api, model, call);
    else
        recheck_begin(api->rechecks, model, call, attach_rechecked, api);
}

static void attach_hidden(struct api *api, struct call *call, uint64_t after);

/* The facts of the model with this id are new, if it is there. Perhaps the caller sees it now. */
static void hidden_rechecked(void *context, uint64_t id, struct model *model, struct call *call)
{
    struct api *api = context;
    struct model *found = registry_find(api->registry, name_of(call), conn_peer(call->conn));
    if (found && found == model)
        attach_rechecked(api, id, model, call);
    else if (found)
        attach_seen(api, found, call);
    else if (id > 0)
        attach_hidden(api, call, id);
    else
        call_fail(call, WIRE_ModelNotFound, error_name(name_of(call)));
}

/* The caller sees no model of this name. There may be one that the caller may see by now: looks at all that have the
 * name, one after the other. If there is none, a worker is asked to do nothing, so that the way is the same. But
 * looking at files takes time, the longer the more files there are: whoever measures it can tell whether there is such
 * a model. SECURITY.md says so. */
static void attach_hidden(struct api *api, struct call *call, uint64_t after)
{
    struct model *model = registry_find_hidden(api->registry, name_of(call), conn_peer(call->conn), after);
    if ((!model && after > 0) || api->core->stopping)
        call_fail(call, WIRE_ModelNotFound, error_name(name_of(call)));
    else
        recheck_begin(api->rechecks, model, call, hidden_rechecked, api);
}

void method_attach(struct api *api, struct call *call)
{
    struct parameters {
        const char *name;
        bool table, header;
        double deadline;
    } p = {0};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"table", PARAM_BOOL, false, offsetof(struct parameters, table)},
        {"header", PARAM_BOOL, false, offsetof(struct parameters, header)},
        {"deadline", PARAM_SECONDS, false, offsetof(struct parameters, deadline)},
        {0},
    };
    if (!params_read(call, table, &p))
        return;
    call_set_deadline(call, p.deadline);
    struct model *model = registry_find(api->registry, p.name, conn_peer(call->conn));
    if (model)
        attach_seen(api, model, call);
    else
        attach_hidden(api, call, 0);
}

static bool token_parse(const char *text, uint8_t ret[MODEL_TOKEN_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    if (strlen(text) != 2 * (size_t)MODEL_TOKEN_SIZE)
        return false;
    for (size_t i = 0; i < MODEL_TOKEN_SIZE; i++) {
        const char *high = strchr(digits, text[2 * i]), *low = strchr(digits, text[2 * i + 1]);
        if (!high || !low)
            return false;
        ret[i] = (uint8_t)((high - digits) << 4 | (low - digits));
    }
    return true;
}

void method_reattach(struct api *api, struct call *call)
{
    struct parameters {
        const char *name, *token;
    } p = {0};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"token", PARAM_STRING, true, offsetof(struct parameters, token)},
        {0},
    };
    if (!params_read(call, table, &p) || refuse_stopping(api, call))
        return;
    uint8_t token[MODEL_TOKEN_SIZE];
    if (!token_parse(p.token, token)) {
        call_fail_parameter(call, "token");
        return;
    }
    struct model *model = registry_find_token(api->registry, token, conn_peer(call->conn));
    if (model)
        attach_again(api->registry, api->events, model, call);
    else
        call_fail(call, WIRE_ModelNotFound, error_name(p.name));
}

void method_detach(struct api *api, struct call *call)
{
    (void)api;
    int64_t id = 0;
    static const struct param table[] = {{"lease", PARAM_INT, true, 0}, {0}};
    if (!params_read(call, table, &id))
        return;
    struct lease *lease;
    LIST_FOREACH(lease, &session_holder(call->conn)->leases, of_holder)
    {
        if (lease->id == (uint64_t)id) {
            lease_end(lease);
            call_reply(call, NULL, NULL, 0);
            return;
        }
    }
    cJSON *parameters = cJSON_CreateObject();
    cJSON_AddNumberToObject(parameters, "lease", (double)id);
    call_fail(call, WIRE_LeaseNotFound, parameters);
}

void method_verify(struct api *api, struct call *call)
{
    struct name_and_deadline p = {0};
    struct model *model = find_model(api, call, name_and_deadline, &p, &p.name);
    if (!model || refuse_stopping(api, call))
        return;
    if (model_is_published(model)) {
        call_fail(call, WIRE_NoFile, error_name(p.name));
        return;
    }
    if (model_lost(model)) {
        call_fail(call, WIRE_DeviceError, describe_device_lost(model->device, "verify"));
        return;
    }
    if (!verify_may_compare(model)) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
        return;
    }
    call_set_deadline(call, p.deadline);
    verify_begin(api->verifies, model, call);
}

/* Finds a model that the caller may change. One that drains, or is being unloaded, goes whatever is set. NULL after
 * the call was failed. */
static struct model *find_own(struct api *api, struct call *call, const struct param *table, void *parameters,
                              const char **name)
{
    struct model *model = find_model(api, call, table, parameters, name);
    if (model && !may_end(call, model)) {
        call_fail(call, WIRE_PermissionDenied, error_reason("another user loaded this model"));
        return NULL;
    }
    if (model && (model->state == MODEL_DRAINING || model->state == MODEL_UNLOADING)) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
        return NULL;
    }
    return model;
}

void method_pin(struct api *api, struct call *call)
{
    const char *name = NULL;
    struct model *model = find_own(api, call, name_only, &name, &name);
    if (!model)
        return;
    model_set_pinned(model, true);
    call_reply(call, NULL, NULL, 0);
}

void method_unpin(struct api *api, struct call *call)
{
    const char *name = NULL;
    struct model *model = find_own(api, call, name_only, &name, &name);
    if (!model)
        return;
    model_set_pinned(model, false);
    residency_idle(api->residency, model);
    call_reply(call, NULL, NULL, 0);
}

void method_set_ttl(struct api *api, struct call *call)
{
    struct parameters {
        const char *name;
        int64_t ttl;
    } p = {.ttl = TTL_NOT_SAID};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"ttl", PARAM_INT, false, offsetof(struct parameters, ttl)},
        {0},
    };
    struct model *model = find_own(api, call, table, &p, &p.name);
    if (!model)
        return;
    if (!ttl_read(&p.ttl)) {
        call_fail_parameter(call, "ttl");
        return;
    }
    model_set_ttl(model, p.ttl);
    residency_idle(api->residency, model);
    call_reply(call, NULL, NULL, 0);
}
