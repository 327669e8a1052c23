/* The methods by which a client makes a model itself: Create, Publish. */
#include "daemon/api/methods_list.h"
#include "daemon/base/json_text.h"
#include "daemon/base/trust.h"
#include "daemon/load/creation.h"
#include "daemon/model/manifest.h"
#include "daemon/wire/errors.h"
#include "daemon/wire/params.h"
#include "proto/model_file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The parameter was not sent. */
#define NOT_SAID INT64_MIN

/* Takes the descriptor with this index over. Returns false after the call was failed. */
static bool take_file(struct api *api, struct call *call, int64_t index, struct client_text *ret)
{
    int fds[FRAME_FDS_MAX];
    size_t n = 0;
    cJSON *indexes = cJSON_CreateArray();
    json_append(indexes, cJSON_CreateNumber((double)index));
    const bool taken = call_take_fds(call, indexes, fds, &n);
    cJSON_Delete(indexes);
    if (taken)
        *ret = (struct client_text){.fd = fds[0], .closer = api->core->closer, .uid = conn_uid(call->conn)};
    return taken;
}

/* The list of tensors: in the message, or in a file. Returns false after the call was failed. */
static bool take_tensors(struct api *api, struct call *call, const cJSON *tensors, int64_t file,
                         struct client_text *ret)
{
    if (tensors && file != NOT_SAID) {
        call_fail_parameter(call, "tensorsFile");
        return false;
    }
    if (file != NOT_SAID)
        return take_file(api, call, file, ret);
    ret->text = tensors ? cJSON_PrintUnformatted(tensors) : NULL;
    ret->size = ret->text ? strlen(ret->text) : 0;
    if (!tensors || ret->text)
        return true;
    call_fail(call, WIRE_LimitExceeded, error_no_memory());
    return false;
}

struct create_parameters {
    const char *name, *key, *device;
    const cJSON *tensors;
    int64_t tensors_file, bytes;
    double wait_for_memory, deadline;
    bool wait, private, public, any_publisher, replace, table, header;
};

static const struct param create_table[] = {
    {"name", PARAM_STRING, true, offsetof(struct create_parameters, name)},
    {"key", PARAM_STRING, false, offsetof(struct create_parameters, key)},
    {"tensors", PARAM_ARRAY, false, offsetof(struct create_parameters, tensors)},
    {"tensorsFile", PARAM_INT, false, offsetof(struct create_parameters, tensors_file)},
    {"bytes", PARAM_INT, false, offsetof(struct create_parameters, bytes)},
    {"device", PARAM_STRING, false, offsetof(struct create_parameters, device)},
    {"wait", PARAM_BOOL, false, offsetof(struct create_parameters, wait)},
    {"waitForMemory", PARAM_SECONDS, false, offsetof(struct create_parameters, wait_for_memory)},
    {"private", PARAM_BOOL, false, offsetof(struct create_parameters, private)},
    {"public", PARAM_BOOL, false, offsetof(struct create_parameters, public)},
    {"anyPublisher", PARAM_BOOL, false, offsetof(struct create_parameters, any_publisher)},
    {"replace", PARAM_BOOL, false, offsetof(struct create_parameters, replace)},
    /* attach_grant() reads these two again, from the call. */
    {"table", PARAM_BOOL, false, offsetof(struct create_parameters, table)},
    {"header", PARAM_BOOL, false, offsetof(struct create_parameters, header)},
    {"deadline", PARAM_SECONDS, false, offsetof(struct create_parameters, deadline)},
    {0},
};

/* The name of the first parameter with an invalid value; NULL: all are valid. */
static const char *create_wrong_parameter(const struct create_parameters *p)
{
    if (model_name_check(p->name) < 0)
        return "name";
    if (p->key && (!p->key[0] || !manifest_text_valid(p->key, strlen(p->key), MANIFEST_KEY_MAX)))
        return "key";
    if (p->bytes != NOT_SAID && (p->bytes < 1 || (uint64_t)p->bytes >= PLAN_ARENA_MAX))
        return "bytes";
    if (!p->tensors && p->tensors_file == NOT_SAID && p->bytes == NOT_SAID)
        return "tensors";
    if (p->private && p->public)
        return "public";
    return NULL;
}

/* NULL after the call was failed. */
static struct creation *creation_of(struct api *api, struct call *call, const struct create_parameters *p)
{
    struct creation *creation = creation_new();
    char *key = p->key ? strdup(p->key) : NULL;
    if (!creation || (p->key && !key)) {
        free(key);
        creation_free(creation);
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return NULL;
    }
    creation->key = key;
    creation->bytes = p->bytes == NOT_SAID ? 0 : (uint64_t)p->bytes;
    creation->wait = p->wait;
    creation->any_publisher = p->any_publisher;
    if (take_tensors(api, call, p->tensors, p->tensors_file, &creation->tensors))
        return creation;
    creation_free(creation);
    return NULL;
}

void method_create(struct api *api, struct call *call)
{
    struct create_parameters p = {.device = "auto", .tensors_file = NOT_SAID, .bytes = NOT_SAID, .wait = true};
    if (!params_read(call, create_table, &p))
        return;
    if (api->core->stopping) {
        call_fail(call, WIRE_ShuttingDown, NULL);
        return;
    }
    const char *wrong = create_wrong_parameter(&p);
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    if (call->oneway) { /* the client would not get the memory */
        call_reply(call, NULL, NULL, 0);
        return;
    }
    const uid_t uid = conn_uid(call->conn);
    struct load_request request = {
        .name = p.name,
        .wait = true,
        .wait_for_memory = p.wait_for_memory,
        .peer = conn_peer(call->conn),
        .uid = uid,
        .trusted = trusted_user(uid),
        .ttl = -1,
        .access = p.private  ? ACCESS_PRIVATE
                  : p.public ? ACCESS_PUBLIC
                             : ACCESS_READERS,
        .replace = p.replace ? REPLACE_NAME : REPLACE_STALE,
    };
    if (devices_named(api->devices, p.device, &request.among) == 0) {
        call_fail(call, WIRE_DeviceNotFound, error_device(p.device, NULL));
        return;
    }
    if (forms_new(FORM_NATIVE, NULL, &request.forms) < 0) {
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return;
    }
    request.creation = creation_of(api, call, &p);
    if (request.creation) {
        call_set_deadline(call, p.deadline);
        load_begin(api->loads, &request, call);
    }
    forms_unref(request.forms);
}

struct publish_parameters {
    const char *metadata;
    const cJSON *tensors;
    int64_t creation, metadata_file, tensors_file, ttl;
    bool lease, pin, table, header;
};

static const struct param publish_table[] = {
    {"creation", PARAM_INT, true, offsetof(struct publish_parameters, creation)},
    {"tensors", PARAM_ARRAY, false, offsetof(struct publish_parameters, tensors)},
    {"tensorsFile", PARAM_INT, false, offsetof(struct publish_parameters, tensors_file)},
    {"metadata", PARAM_STRING, false, offsetof(struct publish_parameters, metadata)},
    {"metadataFile", PARAM_INT, false, offsetof(struct publish_parameters, metadata_file)},
    {"lease", PARAM_BOOL, false, offsetof(struct publish_parameters, lease)},
    {"table", PARAM_BOOL, false, offsetof(struct publish_parameters, table)},
    {"header", PARAM_BOOL, false, offsetof(struct publish_parameters, header)},
    {"pin", PARAM_BOOL, false, offsetof(struct publish_parameters, pin)},
    {"ttl", PARAM_INT, false, offsetof(struct publish_parameters, ttl)},
    {0},
};

/* The name of the first parameter with an invalid value; NULL: all are valid. */
static const char *publish_wrong_parameter(const struct publish_parameters *p, const struct creation *creation)
{
    const bool tensors = p->tensors || p->tensors_file != NOT_SAID;
    if (tensors == creation_has_tensors(creation))
        return "tensors";
    if (p->metadata && p->metadata_file != NOT_SAID)
        return "metadataFile";
    if (p->table && !p->lease)
        return "table";
    if (p->header && !p->lease)
        return "header";
    return p->ttl < 0 && p->ttl != NOT_SAID ? "ttl" : NULL;
}

/* Returns false after the call was failed. */
static bool take_metadata(struct api *api, struct call *call, const struct publish_parameters *p,
                          struct client_text *ret)
{
    if (p->metadata_file != NOT_SAID)
        return take_file(api, call, p->metadata_file, ret);
    ret->text = p->metadata ? strdup(p->metadata) : NULL;
    ret->size = ret->text ? strlen(ret->text) : 0;
    if (!p->metadata || ret->text)
        return true;
    call_fail(call, WIRE_LimitExceeded, error_no_memory());
    return false;
}

void method_publish(struct api *api, struct call *call)
{
    struct publish_parameters p = {.metadata_file = NOT_SAID, .tensors_file = NOT_SAID, .ttl = NOT_SAID};
    if (!params_read(call, publish_table, &p))
        return;
    struct creation *creation = p.creation > 0 ? creation_find(call->conn, (uint64_t)p.creation) : NULL;
    if (!creation) {
        cJSON *parameters = cJSON_CreateObject();
        cJSON_AddNumberToObject(parameters, "creation", (double)p.creation);
        call_fail(call, WIRE_CreationNotFound, parameters);
        return;
    }
    const char *wrong = publish_wrong_parameter(&p, creation);
    if (wrong) {
        call_fail_parameter(call, wrong);
        return;
    }
    struct publish_request request = {
        .metadata = CLIENT_TEXT_NONE,
        .tensors = CLIENT_TEXT_NONE,
        .lease = p.lease,
        .pin = p.pin,
        .ttl = p.ttl == NOT_SAID ? -1 : p.ttl,
    };
    if (!take_metadata(api, call, &p, &request.metadata) ||
        !take_tensors(api, call, p.tensors, p.tensors_file, &request.tensors)) {
        client_text_clear(&request.metadata);
        client_text_clear(&request.tensors);
        return;
    }
    creation_publish(creation, &request, call);
}
