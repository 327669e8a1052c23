/* The methods that report the daemon's state: List, Show, Devices, Metrics, Status, Watch. */
#include "daemon/api/methods_list.h"
#include "daemon/api/metrics.h"
#include "daemon/base/json_text.h"
#include "daemon/session/describe.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/params.h"
#include "kernels/dequant.h"
#include "proto/interface.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct param nothing[] = {{0}};

/* Counts the models that the peer may see, and their leases. */
static void count_seen(const struct api *api, const struct peer *peer, size_t *ret_models, size_t *ret_leases)
{
    *ret_models = *ret_leases = 0;
    const struct model *model;
    TAILQ_FOREACH(model, &api->registry->models, link)
    {
        if (!model_visible(model, peer))
            continue;
        ++*ret_models;
        *ret_leases += model->n_leases;
    }
}

static cJSON *describe_models(const struct api *api, const struct peer *peer)
{
    cJSON *array = cJSON_CreateArray();
    const struct model *model;
    TAILQ_FOREACH(model, &api->registry->models, link)
    {
        if (model_visible(model, peer))
            json_append(array, describe_model_brief(model, peer));
    }
    return array;
}

void method_list(struct api *api, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "models", describe_models(api, conn_peer(call->conn)));
    call_reply(call, reply, NULL, 0);
}

void method_show(struct api *api, struct call *call)
{
    struct parameters {
        const char *name;
        bool header;
    } p = {0};
    static const struct param table[] = {
        {"name", PARAM_STRING, true, offsetof(struct parameters, name)},
        {"header", PARAM_BOOL, false, offsetof(struct parameters, header)},
        {0},
    };
    if (!params_read(call, table, &p))
        return;
    struct model *model = registry_find(api->registry, p.name, conn_peer(call->conn));
    if (!model) {
        call_fail(call, WIRE_ModelNotFound, error_name(p.name));
        return;
    }
    const struct publication *published = &model->published;
    if (!published->tensors) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
        return;
    }
    if (!call_may_queue(call, strlen(published->tensors) + strlen(published->metadata)))
        return;
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "model", describe_model(model, conn_peer(call->conn)));
    cJSON_AddRawToObject(reply, "metadata", published->metadata);
    if (published->n_left > 0)
        cJSON_AddNumberToObject(reply, "metadataLeft", (double)published->n_left);
    cJSON_AddRawToObject(reply, "tensors", published->tensors);
    json_add_item(reply, "leases", describe_leases(model, conn_peer(call->conn)));
    if (p.header)
        cJSON_AddNumberToObject(reply, "header", 0);
    call_reply(call, reply, &published->header_fd, p.header ? 1 : 0);
}

/* A call of Devices or Metrics that waits until the drivers have answered. */
struct looking {
    struct survey_request request;
    struct api *api;
    struct call *call;
    cJSON *(*describe)(const struct looking *looking); /* makes the reply */
};

static cJSON *describe_devices(const struct looking *looking)
{
    const struct devices *all = looking->api->devices;
    cJSON *reply = cJSON_CreateObject();
    cJSON *devices = cJSON_AddArrayToObject(reply, "devices");
    for (size_t i = 0; i < all->n; i++)
        json_append(devices, describe_device(all->devices[i]));
    return reply;
}

static cJSON *describe_metrics(const struct looking *looking)
{
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "metrics", metrics_describe(looking->api, conn_peer(looking->call->conn)));
    return reply;
}

static void looking_end(struct call *call)
{
    free(call->context);
}

static void looking_answer(struct call *call)
{
    struct looking *looking = call->context;
    host_cache_note(&looking->api->residency->cache);
    cJSON *reply = looking->describe(looking);
    call->abandoned = NULL;
    looking_end(call);
    call_reply(call, reply, NULL, 0);
}

/* One answer of the drivers is for all who wait: each is answered in its turn. */
static void looked(struct survey_request *request)
{
    struct looking *looking = (struct looking *)((char *)request - offsetof(struct looking, request));
    looking->call->abandoned = looking_end;
    call_later(looking->call, looking_answer);
}

static void looking_abandoned(struct call *call)
{
    struct looking *looking = call->context;
    survey_forget(looking->api->survey, &looking->request);
    looking_end(call);
}

/* Answers the call, which takes no parameters, when the drivers have answered. */
static void look(struct api *api, struct call *call, cJSON *(*describe)(const struct looking *looking))
{
    if (!params_read(call, nothing, NULL))
        return;
    struct looking *looking = malloc(sizeof(*looking));
    if (!looking) {
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return;
    }
    *looking = (struct looking){.request = {.done = looked}, .api = api, .call = call, .describe = describe};
    call->context = looking;
    call->abandoned = looking_abandoned;
    survey_ask(api->survey, &looking->request);
}

void method_devices(struct api *api, struct call *call)
{
    look(api, call, describe_devices);
}

void method_metrics(struct api *api, struct call *call)
{
    look(api, call, describe_metrics);
}

void method_status(struct api *api, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    size_t n_models, n_leases;
    count_seen(api, conn_peer(call->conn), &n_models, &n_leases);
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddStringToObject(reply, "version", ROCMFORGE_VERSION);
    cJSON_AddNumberToObject(reply, "interface", INTERFACE_VERSION);
    cJSON_AddNumberToObject(reply, "pid", getpid());
    cJSON_AddNumberToObject(reply, "uptime", (double)((uv_hrtime() - api->started) / 1000000) / 1e3);
    cJSON_AddNumberToObject(reply, "connections", (double)conns_count(api->conns));
    cJSON_AddNumberToObject(reply, "models", (double)n_models);
    cJSON_AddNumberToObject(reply, "leases", (double)n_leases);
    cJSON_AddNumberToObject(reply, "loads", (double)loads_seen(api->loads, conn_peer(call->conn)));
    cJSON_AddNumberToObject(reply, "workers", api->core->workers);
    cJSON_AddNumberToObject(reply, "heldUp", workers_hanging(api->core->queue));
    cJSON_AddStringToObject(reply, "isa", dequant_isa());
    call_reply(call, reply, NULL, 0);
}

void method_watch(struct api *api, struct call *call)
{
    if (!params_read(call, nothing, NULL))
        return;
    if (!call->more) {
        call_fail(call, WIRE_ExpectedMore, NULL);
        return;
    }
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "models", describe_models(api, conn_peer(call->conn)));
    events_watch(api->events, call, reply);
}
