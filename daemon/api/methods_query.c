/* The methods that only tell: List, Show, Devices, Status, Watch. */
#include "daemon/session/describe.h"
#include "daemon/api/methods_list.h"
#include "daemon/wire/params.h"
#include "daemon/server.h"
#include "daemon/base/users.h"
#include "kernels/dequant.h"

#include <string.h>
#include <unistd.h>

static const struct param nothing[] = {{0}};

static cJSON *describe_models(const struct server *server, uid_t uid)
{
    cJSON *array = cJSON_CreateArray();
    const struct model *model;
    TAILQ_FOREACH(model, &server->registry.models, link)
    {
        if (model_visible(model, uid))
            cJSON_AddItemToArray(array, describe_model(model));
    }
    return array;
}

void method_list(struct server *server, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddItemToObject(reply, "models", describe_models(server, conn_uid(call->conn)));
    call_reply(call, reply, NULL, 0);
}

void method_show(struct server *server, struct call *call)
{
    const char *name = NULL;
    static const struct param table[] = {{"name", PARAM_STRING, true, 0}, {0}};
    if (!params_read(call, table, &name))
        return;
    struct model *model = registry_find(&server->registry, name);
    if (!model || !model_visible(model, conn_uid(call->conn))) {
        call_fail(call, WIRE_ModelNotFound, describe_name(name));
        return;
    }
    const struct publication *published = &model->published;
    if (!published->tensors) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model));
        return;
    }
    if (!user_may_be_told(server, call, strlen(published->tensors) + strlen(published->metadata)))
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddItemToObject(reply, "model", describe_model(model));
    cJSON_AddRawToObject(reply, "metadata", published->metadata);
    cJSON_AddRawToObject(reply, "tensors", published->tensors);
    cJSON_AddItemToObject(reply, "leases", describe_leases(model));
    call_reply(call, reply, NULL, 0);
}

void method_devices(struct server *server, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON *devices = cJSON_AddArrayToObject(reply, "devices");
    for (size_t i = 0; i < server->n_devices; i++)
        cJSON_AddItemToArray(devices, describe_device(server->devices[i]));
    call_reply(call, reply, NULL, 0);
}

void method_status(struct server *server, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "version", ROCMFORGE_VERSION);
    cJSON_AddNumberToObject(reply, "pid", getpid());
    cJSON_AddNumberToObject(reply, "uptime", (double)((uv_hrtime() - server->started) / 1000000) / 1e3);
    cJSON_AddNumberToObject(reply, "connections", (double)conns_count(server->conns));
    cJSON_AddNumberToObject(reply, "models", (double)server->registry.n_models);
    cJSON_AddNumberToObject(reply, "leases", (double)server->registry.n_leases);
    cJSON_AddNumberToObject(reply, "loads", (double)server->n_loads);
    cJSON_AddNumberToObject(reply, "workers", server->workers);
    cJSON_AddStringToObject(reply, "isa", dequant_isa());
    call_reply(call, reply, NULL, 0);
}

void method_watch(struct server *server, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    if (!call->more) {
        call_fail(call, WIRE_ExpectedMore, NULL);
        return;
    }
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddItemToObject(reply, "models", describe_models(server, conn_uid(call->conn)));
    events_watch(server->events, call, reply);
}
