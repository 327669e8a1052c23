/* The methods that change something: Load, Unload, Cancel, Attach, Detach, Verify. */
#include "daemon/describe.h"
#include "daemon/load.h"
#include "daemon/log.h"
#include "daemon/methods_list.h"
#include "daemon/params.h"
#include "daemon/server.h"
#include "daemon/verify.h"
#include "proto/base64.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* Reads the one parameter `name` and finds its model. NULL after the call was failed. */
static struct model *find_model(struct server *server, struct call *call, const struct param *table, void *parameters,
                                const char **name)
{
    if (!params_read(call, table, parameters))
        return NULL;
    struct model *model = registry_find(&server->registry, *name);
    if (!model)
        call_fail(call, WIRE_ModelNotFound, describe_name(*name));
    return model;
}

/* Whoever loaded a model may end it, and those who rule the machine or the daemon. */
static bool may_end(const struct call *call, const struct model *model)
{
    uid_t uid = conn_uid(call->conn);
    return uid == model->uid || uid == 0 || uid == getuid();
}

static bool refuse_stopping(const struct server *server, struct call *call)
{
    if (server->stopping)
        call_fail(call, WIRE_ShuttingDown, NULL);
    return server->stopping;
}

void method_load(struct server *server, struct call *call)
{
    struct parameters {
        const cJSON *fds;
        const char *path, *name, *form, *device, *dequant;
        bool wait;
    } p = {.form = "auto", .device = "auto", .dequant = "auto", .wait = true};
    static const struct param table[] = {
        {"fds", PARAM_INTS, false, offsetof(struct parameters, fds)},
        {"path", PARAM_STRING, false, offsetof(struct parameters, path)},
        {"name", PARAM_STRING, false, offsetof(struct parameters, name)},
        {"form", PARAM_STRING, false, offsetof(struct parameters, form)},
        {"device", PARAM_STRING, false, offsetof(struct parameters, device)},
        {"dequant", PARAM_STRING, false, offsetof(struct parameters, dequant)},
        {"wait", PARAM_BOOL, false, offsetof(struct parameters, wait)},
        {0},
    };
    if (!params_read(call, table, &p) || refuse_stopping(server, call))
        return;
    enum form form;
    const char *wrong = NULL;
    if (!p.fds == !p.path || (p.fds && cJSON_GetArraySize(p.fds) != 1))
        wrong = "fds";
    else if (p.path && p.path[0] != '/')
        wrong = "path";
    else if (p.name && model_name_check(p.name) < 0)
        wrong = "name";
    else if (plan_form_parse(p.form, &form) < 0)
        wrong = "form";
    else if (strcmp(p.dequant, "auto") != 0 && strcmp(p.dequant, "cpu") != 0 && strcmp(p.dequant, "gpu") != 0)
        wrong = "dequant";
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    struct device *device = server_device(server, p.device);
    if (!device || (strcmp(p.dequant, "gpu") == 0 && strcmp(device->kind, "host") == 0)) {
        call_fail(call, WIRE_DeviceNotFound, describe_device_name(device ? "gpu" : p.device));
        return;
    }
    int fd = -1;
    if (p.fds) {
        int64_t index = -1;
        (void)params_integer(cJSON_GetArrayItem(p.fds, 0), &index);
        fd = call_take_fd(call, index);
        if (fd < 0) {
            call_fail_parameter(call, "fds");
            return;
        }
    }
    uid_t uid = conn_uid(call->conn);
    load_begin(server,
               &(struct load_request){
                   .fd = fd,
                   .path = p.path,
                   .name = p.name,
                   .form = form,
                   .device = device,
                   .decode_on_cpu = strcmp(p.dequant, "cpu") == 0,
                   .wait = p.wait,
                   .uid = uid,
                   .trusted = uid == 0 || uid == getuid(),
               },
               call);
}

static const struct param name_only[] = {{"name", PARAM_STRING, true, 0}, {0}};

void method_unload(struct server *server, struct call *call)
{
    const char *name = NULL;
    struct model *model = find_model(server, call, name_only, &name, &name);
    if (!model)
        return;
    if (!may_end(call, model))
        call_fail(call, WIRE_PermissionDenied, describe_reason("another user loaded this model"));
    else if ((model->state != MODEL_RESIDENT && model->state != MODEL_FAILED) || model_in_use(model))
        call_fail(call, WIRE_ModelBusy, describe_busy(model));
    else
        server_unload(server, model, call);
}

void method_cancel(struct server *server, struct call *call)
{
    const char *name = NULL;
    struct model *model = find_model(server, call, name_only, &name, &name);
    if (!model)
        return;
    if (!may_end(call, model))
        call_fail(call, WIRE_PermissionDenied, describe_reason("another user loads this model"));
    else if (!model->load)
        call_fail(call, WIRE_ModelBusy, describe_busy(model));
    else
        load_end(model->load, WIRE_Cancelled, call);
}

void method_attach(struct server *server, struct call *call)
{
    struct parameters {
        const char *name;
        bool table;
    } p = {0};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"table", PARAM_BOOL, false, offsetof(struct parameters, table)},
        {0},
    };
    struct model *model = find_model(server, call, table, &p, &p.name);
    if (!model || refuse_stopping(server, call))
        return;
    if (call->oneway) { /* nobody would learn of the lease */
        call_reply(call, NULL, NULL, 0);
        return;
    }
    if (model->state != MODEL_RESIDENT) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model));
        return;
    }
    struct lease *lease = registry_lease(&server->registry, model, call->conn);
    const char *tensors = p.table ? NULL : describe_tensors(model);
    if (!lease || (!p.table && !tensors)) {
        if (lease)
            lease_end(lease);
        call_fail(call, WIRE_LimitExceeded, describe_limit("memory", 0));
        return;
    }
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "lease", (double)lease->id);
    cJSON_AddItemToObject(reply, "model", describe_model(model));
    cJSON_AddItemToObject(reply, "device", describe_device(model->device));
    int fds[2];
    size_t n_fds = 0;
    if (model->export.fd >= 0) {
        fds[n_fds] = model->export.fd;
        cJSON_AddNumberToObject(reply, "fd", (double)n_fds++);
    } else
        cJSON_AddNullToObject(reply, "fd");
    if (model->export.handle_size > 0) {
        char handle[BASE64_SIZE(sizeof(model->export.handle))];
        base64_encode(handle, model->export.handle, model->export.handle_size);
        cJSON_AddStringToObject(reply, "handle", handle);
    } else
        cJSON_AddNullToObject(reply, "handle");
    if (p.table) {
        fds[n_fds] = model->table_fd;
        cJSON_AddNumberToObject(reply, "table", (double)n_fds++);
        cJSON_AddNullToObject(reply, "tensors");
    } else {
        cJSON_AddNullToObject(reply, "table");
        cJSON_AddRawToObject(reply, "tensors", tensors);
    }
    log_debug("conn=%" PRIu64 " model=%s lease=%" PRIu64 " granted", conn_id(call->conn), model->name, lease->id);
    events_emit(server->events, "attached", model, NULL);
    call_reply(call, reply, fds, n_fds);
}

void method_detach(struct server *server, struct call *call)
{
    (void)server;
    int64_t id = 0;
    static const struct param table[] = {{"lease", PARAM_INT, true, 0}, {0}};
    if (!params_read(call, table, &id))
        return;
    struct lease *lease;
    LIST_FOREACH(lease, conn_leases(call->conn), of_conn)
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

void method_verify(struct server *server, struct call *call)
{
    const char *name = NULL;
    struct model *model = find_model(server, call, name_only, &name, &name);
    if (!model || refuse_stopping(server, call))
        return;
    if (model->state != MODEL_RESIDENT)
        call_fail(call, WIRE_ModelBusy, describe_busy(model));
    else
        verify_begin(server, model, call);
}
