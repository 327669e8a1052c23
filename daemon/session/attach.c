#include "daemon/session/attach.h"

#include "daemon/base/json_text.h"
#include "daemon/base/log.h"
#include "daemon/model/calling.h"
#include "daemon/model/registry.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/session/session.h"
#include "daemon/wire/errors.h"
#include "proto/base64.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

size_t attach_export(cJSON *reply, const struct device_export *export, int *fds)
{
    size_t n = 0;
    if (export->fd >= 0) {
        cJSON_AddNumberToObject(reply, "fd", (double)n);
        fds[n++] = export->fd;
    } else
        cJSON_AddNullToObject(reply, "fd");
    if (export->handle_size > 0) {
        char handle[BASE64_SIZE(sizeof(export->handle))];
        base64_encode(handle, export->handle, export->handle_size);
        cJSON_AddStringToObject(reply, "handle", handle);
    } else
        cJSON_AddNullToObject(reply, "handle");
    return n;
}

/* Returns a lease for the call; or NULL after the call was answered without a lease. */
static struct lease *grant(struct registry *registry, struct model *model, struct call *call, bool binary)
{
    struct lease *lease = NULL;
    uint64_t limit;
    if (call->oneway) { /* the client would not learn of the lease */
        call_reply(call, NULL, NULL, 0);
        return NULL;
    }
    if (model_lost(model)) {
        call_fail(call, WIRE_DeviceError, describe_device_lost(model->device, "attach"));
        return NULL;
    }
    if (model->state != MODEL_RESIDENT) {
        call_fail(call, WIRE_ModelBusy, describe_busy(model, conn_peer(call->conn)));
        return NULL;
    }
    if (!binary && !call_may_queue(call, strlen(model->published.tensors)))
        return NULL;
    int r = lease_grant(registry, model, session_holder(call->conn), &lease, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_LEASES, limit));
        return NULL;
    }
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(call->parameters, "name");
    const bool asked = cJSON_IsString(name) && model_has_name(model, name->valuestring);
    char room[MODEL_NAME_SIZE];
    /* If memory is short, NULL: the model's own name is used. */
    lease->name = strdup(asked ? name->valuestring : model_called(model, conn_peer(call->conn), room));
    return lease;
}

static void add_token(cJSON *reply, const struct model *model)
{
    static const char digits[] = "0123456789abcdef";
    char text[2 * MODEL_TOKEN_SIZE + 1] = "";
    for (size_t i = 0; i < MODEL_TOKEN_SIZE; i++) {
        text[2 * i] = digits[model->token[i] >> 4];
        text[2 * i + 1] = digits[model->token[i] & 15];
    }
    cJSON_AddStringToObject(reply, "token", text);
}

void attach_again(struct registry *registry, struct events *events, struct model *model, struct call *call)
{
    struct lease *lease = grant(registry, model, call, true);
    if (!lease)
        return;
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "lease", (double)lease->id);
    json_add_item(reply, "model", describe_model(model, conn_peer(call->conn)));
    log_debug("conn=%" PRIu64 " model=%s id=%" PRIu64 " lease=%" PRIu64 " granted again", conn_id(call->conn),
              model->name, model->id, lease->id);
    events_emit(events, "attached", model, NULL);
    if (!call_reply(call, reply, NULL, 0))
        lease_end(lease);
}

void attach_grant(struct registry *registry, struct events *events, struct model *model, struct call *call,
                  cJSON *reply)
{
    const bool binary = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(call->parameters, "table"));
    struct lease *lease = grant(registry, model, call, binary);
    if (!lease) {
        cJSON_Delete(reply);
        return;
    }
    if (!reply)
        reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "lease", (double)lease->id);
    add_token(reply, model);
    json_add_item(reply, "model", describe_model(model, conn_peer(call->conn)));
    json_add_item(reply, "device", describe_device(model->device));
    int fds[3];
    size_t n_fds = attach_export(reply, &model->export, fds);
    if (binary) {
        cJSON_AddNumberToObject(reply, "table", (double)n_fds);
        cJSON_AddNullToObject(reply, "tensors");
        fds[n_fds++] = model->published.table_fd;
    } else {
        cJSON_AddNullToObject(reply, "table");
        cJSON_AddRawToObject(reply, "tensors", model->published.tensors);
    }
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(call->parameters, "header"))) {
        cJSON_AddNumberToObject(reply, "header", (double)n_fds);
        fds[n_fds++] = model->published.header_fd;
    }
    log_debug("conn=%" PRIu64 " model=%s id=%" PRIu64 " lease=%" PRIu64 " granted", conn_id(call->conn), model->name,
              model->id, lease->id);
    events_emit(events, "attached", model, NULL);
    if (!call_reply(call, reply, fds, n_fds))
        lease_end(lease); /* the reply was not queued: the client will not learn the lease's id */
}
