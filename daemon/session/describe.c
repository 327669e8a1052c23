#include "daemon/session/describe.h"

#include "daemon/base/json_text.h"
#include "daemon/model/calling.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

/* More rules are left out where many models are described. */
#define BRIEF_RULES_MAX 16u

static void add_integer(cJSON *object, const char *key, uint64_t value)
{
    cJSON_AddNumberToObject(object, key, (double)value);
}

static double seconds_since(uint64_t then)
{
    return (double)((uv_hrtime() - then) / 1000000) / 1e3;
}

/* The names but the first. */
static void add_aliases(cJSON *object, const struct model *model, uint32_t names)
{
    cJSON *aliases = cJSON_AddArrayToObject(object, "aliases");
    bool first = true;
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        if (names & 1) {
            if (!first)
                json_append(aliases, cJSON_CreateString(name->text));
            first = false;
        }
        names >>= 1;
    }
}

static uint32_t names_for(const struct model *model, const struct peer *peer)
{
    struct rivals rivals;
    rivals_find(model, &rivals);
    return calling_names(&rivals, peer);
}

/* As Model.access has it. */
static const char *access_told(const struct model *model)
{
    return model_is_published(model) && model->access == ACCESS_READERS ? "owner" : access_name(model->access);
}

static cJSON *describe(const struct model *model, uint32_t names, bool brief)
{
    char room[MODEL_NAME_SIZE];
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", calling_first(model, names, room));
    add_integer(object, "id", model->id);
    json_add_text(object, "path", model->source->path);
    if (model_is_published(model)) {
        cJSON_AddStringToObject(object, "source", "published");
        json_add_text(object, "key", model->key);
    }
    cJSON_AddStringToObject(object, "form", forms_word(model->forms->form));
    if (brief && model->forms->n_rules > BRIEF_RULES_MAX)
        add_integer(object, "formsLeft", model->forms->n_rules);
    else if (model->forms->n_rules > 0)
        json_add_item(object, "forms", forms_rules(model->forms));
    layout_describe(model->layout, object, brief);
    cJSON_AddStringToObject(object, "device", model->device->id);
    cJSON_AddStringToObject(object, "state", model_state_name(model->state));
    if (model->position > 0)
        add_integer(object, "position", model->position);
    else
        cJSON_AddNullToObject(object, "position");
    add_integer(object, "bytes", model->plan ? model->plan->arena_bytes : 0);
    add_integer(object, "size", model->source->size);
    add_integer(object, "tensors", model->header ? model->header->n_tensors : 0);
    add_integer(object, "leases", model->n_leases);
    cJSON_AddBoolToObject(object, "pinned", model->pinned);
    if (model->ttl >= 0)
        add_integer(object, "ttl", (uint64_t)model->ttl);
    else
        cJSON_AddNullToObject(object, "ttl");
    if (model->state == MODEL_RESIDENT && model->n_leases == 0)
        cJSON_AddNumberToObject(object, "idle", seconds_since(model->idle_since));
    else
        cJSON_AddNullToObject(object, "idle");
    add_integer(object, "uid", model->uid);
    cJSON_AddBoolToObject(object, "private", model->access == ACCESS_PRIVATE);
    cJSON_AddStringToObject(object, "access", access_told(model));
    add_aliases(object, model, names);
    cJSON_AddBoolToObject(object, "changed", model->changed);
    if (model->deleted)
        cJSON_AddTrueToObject(object, "deleted");
    cJSON_AddBoolToObject(object, "heldUp", model->held_up);
    add_integer(object, "overflows", model->overflows);
    return object;
}

cJSON *describe_model(const struct model *model, const struct peer *peer)
{
    return describe(model, names_for(model, peer), false);
}

cJSON *describe_model_brief(const struct model *model, const struct peer *peer)
{
    return describe(model, names_for(model, peer), true);
}

cJSON *describe_model_called(const struct model *model, uint32_t names)
{
    return describe(model, names, true);
}

cJSON *describe_device(const struct device *device)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "id", device->id);
    cJSON_AddStringToObject(object, "kind", device->kind);
    json_add_text(object, "name", device->name);
    json_add_text(object, "uuid", device->uuid[0] ? device->uuid : NULL);
    json_add_text(object, "pci", device->pci[0] ? device->pci : NULL);
    add_integer(object, "total", device->total);
    add_integer(object, "budget", device->budget);
    add_integer(object, "used", device->used);
    add_integer(object, "others", device_others(device));
    if (device->cached > 0)
        add_integer(object, "cached", device->cached);
    add_integer(object, "queued", device->queued);
    add_integer(object, "available", device_available(device));
    cJSON_AddStringToObject(object, "export", export_kind_name(device->export_kind));
    cJSON_AddStringToObject(object, "state", device->failed ? "failed" : "ready");
    if (device->link > 0)
        add_integer(object, "link", device->link);
    else
        cJSON_AddNullToObject(object, "link");
    json_add_text(object, "noKernels", device->no_kernels[0] ? device->no_kernels : NULL);
    return object;
}

static cJSON *describe_lease(const struct lease *lease, const char *model)
{
    cJSON *object = cJSON_CreateObject();
    add_integer(object, "lease", lease->id);
    cJSON_AddStringToObject(object, "model", model);
    add_integer(object, "pid", (uint64_t)lease->holder->pid);
    add_integer(object, "uid", lease->holder->uid);
    cJSON_AddNumberToObject(object, "age", seconds_since(lease->since));
    return object;
}

cJSON *describe_leases(const struct model *model, const struct peer *peer)
{
    char room[MODEL_NAME_SIZE];
    const char *name = model_called(model, peer, room);
    cJSON *array = cJSON_CreateArray();
    const struct lease *lease;
    size_t n = 0;
    LIST_FOREACH(lease, &model->leases, of_model)
    {
        if (n++ == DESCRIBE_LEASES_MAX)
            break;
        json_append(array, describe_lease(lease, name));
    }
    return array;
}

cJSON *describe_progress(const char *state, const struct progress *progress)
{
    const uint64_t done = progress->done, total = progress->total, elapsed_ns = progress->elapsed_ns;
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "state", state);
    add_integer(object, "done", done);
    add_integer(object, "total", total);
    double rate = elapsed_ns > 0 ? (double)done * 1e9 / (double)elapsed_ns : 0;
    add_integer(object, "rate", (uint64_t)rate);
    if (rate > 0 && total >= done)
        cJSON_AddNumberToObject(object, "left", (double)(uint64_t)((double)(total - done) / rate * 1e3) / 1e3);
    else
        cJSON_AddNullToObject(object, "left");
    return object;
}

cJSON *describe_loading(const struct model *model, const struct progress *progress, uint32_t names)
{
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "model", describe_model_called(model, names));
    json_add_item(reply, "progress", describe_progress(model_state_name(model->state), progress));
    return reply;
}

void describe_phases(cJSON *reply, const struct model *model, const struct phases *phases)
{
    cJSON *object = cJSON_AddObjectToObject(reply, "phases");
    add_integer(object, "total", phases->total_ns / 1000);
    add_integer(object, "parse", phases->parse_ns / 1000);
    add_integer(object, "allocate", phases->allocate_ns / 1000);
    add_integer(object, "read", phases->read_ns / 1000);
    add_integer(object, "dequantise", phases->decode_ns / 1000);
    add_integer(object, "copy", phases->copy_ns / 1000);
    add_integer(object, "kernel", phases->kernel_ns / 1000);
    if (model->device->link > 0)
        add_integer(object, "link", model->device->link);
    else
        cJSON_AddNullToObject(object, "link");
}

cJSON *describe_loaded(const struct model *model, const struct phases *phases, const struct peer *peer)
{
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "model", describe_model(model, peer));
    if (phases)
        describe_phases(reply, model, phases);
    return reply;
}

cJSON *describe_device_lost(const struct device *device, const char *call)
{
    char text[sizeof(device->id) + 16];
    snprintf(text, sizeof(text), "%s was lost", device->id);
    cJSON *object = json_object_with("call", call);
    add_integer(object, "code", 0);
    cJSON_AddStringToObject(object, "text", text);
    return object;
}

cJSON *describe_busy(const struct model *model, const struct peer *peer)
{
    char room[MODEL_NAME_SIZE];
    cJSON *object = json_object_with("name", model_called(model, peer, room));
    cJSON_AddStringToObject(object, "state", model_state_name(model->state));
    json_add_item(object, "leases", describe_leases(model, peer));
    return object;
}

cJSON *describe_unsupported(const struct header_tensor *tensor)
{
    cJSON *object = json_object_with("tensor", tensor->name);
    cJSON_AddStringToObject(object, "type", tensor->type->name);
    return object;
}

cJSON *describe_out_of_memory(const struct device *device, uint64_t needed, uint64_t available, uint64_t evictable)
{
    cJSON *object = json_object_with("device", device->id);
    add_integer(object, "needed", needed);
    add_integer(object, "available", available);
    add_integer(object, "evictable", evictable);
    return object;
}

cJSON *describe_state(const char *state)
{
    return json_object_with("state", state);
}
