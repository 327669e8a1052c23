#include "daemon/load/creation.h"

#include "daemon/base/json_text.h"
#include "daemon/base/trust.h"
#include "daemon/load/naming.h"
#include "daemon/load/states.h"
#include "daemon/memory/device_choice.h"
#include "daemon/session/attach.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/errors.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct creation *creation_new(void)
{
    struct creation *creation = calloc(1, sizeof(*creation));
    if (creation)
        creation->tensors = creation->metadata = creation->late_tensors = CLIENT_TEXT_NONE;
    return creation;
}

void creation_free(struct creation *creation)
{
    if (!creation)
        return;
    assert(!creation->publishing);
    if (creation->tied)
        session_untie(&creation->tie);
    client_text_clear(&creation->tensors);
    client_text_clear(&creation->metadata);
    client_text_clear(&creation->late_tensors);
    free(creation->key);
    free(creation);
}

static struct creation *creation_of(const struct session_tie *tie)
{
    return (struct creation *)((char *)(uintptr_t)tie - offsetof(struct creation, tie));
}

struct creation *creation_find(const struct conn *conn, uint64_t id)
{
    struct session_tie *tie = session_find_tie(conn, id);
    struct creation *creation = tie ? creation_of(tie) : NULL;
    return creation && !load_ends(creation->load) && !creation->load->in_job ? creation : NULL;
}

bool creation_has_tensors(const struct creation *creation)
{
    return client_text_given(&creation->tensors);
}

/* --- IDENTIFYING: is there a model with this key? --- */

/* A key is what a user says of its own bytes, and nobody can check it. So the models of other users count only if the
 * user is trusted, or if the request says that it trusts anybody. A model that the caller cannot attach to does not
 * exist for it. */
static bool key_matches(const struct load *load, const struct model *model)
{
    const struct load_request *request = &load->request;
    if (!model->key || strcmp(model->key, load->request.creation->key) != 0 ||
        !device_set_has(&request->among, model->device) || model->state == MODEL_DRAINING ||
        model->state == MODEL_FAILED)
        return false;
    if (model->uid == request->uid)
        return true;
    return request->access != ACCESS_PRIVATE && (trusted_user(model->uid) || request->creation->any_publisher) &&
           model_attachable(model, request->peer);
}

/* The caller's own model comes before those of others. */
static struct model *find_key(const struct load *load)
{
    struct model *model, *found = NULL;
    if (!load->request.creation->key)
        return NULL;
    TAILQ_FOREACH(model, &load->loads->registry->models, link)
    {
        if (!key_matches(load, model))
            continue;
        if (model->uid == load->request.uid)
            return model;
        if (!found)
            found = model;
    }
    return found;
}

/* Another client is making the model. */
static bool wait_for(struct load *load, const struct model *model)
{
    if (load->request.creation->wait)
        load->blocked = true;
    else
        failure_set(&load->failure, WIRE_ModelBusy, describe_busy(model, load->request.peer));
    return false;
}

bool load_creates(const struct load *load)
{
    return load->request.creation && !load->restores;
}

bool creation_identified(struct load *load)
{
    struct load_job *job = &load->job;
    struct creation *creation = load->request.creation;
    if (job->status < 0) {
        load_fail_memory(load);
        return false;
    }
    load->device = device_choice_roomiest(&load->request.among);
    if (!load->device) {
        failure_set(&load->failure, WIRE_DeviceError, describe_device_lost(load->request.among.devices[0], "load"));
        return false;
    }
    struct model *model = find_key(load);
    if (model && model->load && load_creates(model->load) && !model_departs(model))
        return wait_for(load, model);
    if (model)
        return load_take_same(load, model);
    load->model = load_take_name(load);
    if (!load->model)
        return false;
    load->model->key = creation->key ? strdup(creation->key) : NULL;
    if (creation->key && !load->model->key) {
        load_fail_memory(load);
        return false;
    }
    load_show(load, LOAD_OPENING, MODEL_OPENING);
    events_emit(load->loads->events, "loading", load->model, NULL);
    job->device = load->device;
    job->among = &load->request.among;
    job->tensors = &creation->tensors;
    job->bytes = creation->bytes;
    load_queue(load, load_job_manifest);
    return false;
}

/* --- OPENING: the list of tensors --- */

static void manifest_failed(const struct load_job *job, enum wire_error *ret_error, cJSON **ret_parameters)
{
    cJSON *parameters = NULL;
    switch (job->status) {
    case -EBADMSG:
        parameters = error_reason(job->manifest_fault.reason);
        if (job->manifest_fault.tensor != SIZE_MAX)
            cJSON_AddNumberToObject(parameters, "tensor", (double)job->manifest_fault.tensor);
        *ret_error = WIRE_InvalidManifest;
        break;
    case -ENOMEM:
        parameters = error_no_memory();
        *ret_error = WIRE_LimitExceeded;
        break;
    default:
        parameters = error_reason(strerror(-job->status));
        *ret_error = WIRE_InvalidManifest;
    }
    *ret_parameters = parameters;
}

/* The model gets what the job has made of the list. */
static void take_parsed(struct load *load)
{
    struct model *model = load->model;
    struct load_job *job = &load->job;
    plan_free(model->plan);
    model_header_free(model->header);
    manifest_free(model->manifest);
    model->plan = job->parsed.plan;
    model->header = job->parsed.header;
    model->manifest = job->parsed.manifest;
    model->source->size = model->plan->model_bytes;
    job->parsed = (struct manifest_parsed){0};
}

bool creation_opened(struct load *load)
{
    struct load_job *job = &load->job;
    if (job->status < 0) {
        enum wire_error error;
        cJSON *parameters;
        manifest_failed(job, &error, &parameters);
        failure_set(&load->failure, error, parameters);
        return false;
    }
    take_parsed(load);
    return true;
}

/* --- FILLING: the client has the memory --- */

void creation_allocated(struct load *load)
{
    load->job.planned = load->model->plan;
    load->job.filled = load->model->arena;
    load_queue(load, load_job_lend);
}

/* Its client is gone. */
static void creation_cut(struct session_tie *tie)
{
    struct creation *creation = creation_of(tie);
    creation->tied = false;
    load_end(creation->load, WIRE_Cancelled, NULL);
}

/* Gives the memory to the client. If it is gone, or cannot be told, the creation ends. */
static void lend(struct load *load)
{
    struct creation *creation = load->request.creation;
    struct model *model = load->model;
    struct load_job *job = &load->job;
    if (job->status < 0 && job->of_host)
        load_fail_memory(load);
    else if (job->status < 0)
        load_fail_device(load, job->status, &job->fault);
    if (load->failure.error != WIRE_OK)
        return;
    model->export = job->export;
    struct call *call = waiters_take(&load->waiters, WAIT_CREATE);
    if (!call) {
        failure_set(&load->failure, WIRE_Cancelled, NULL);
        return;
    }
    load->detached = true; /* its end is that of the connection from now on, and not that of a call */
    creation->load = load;
    creation->tied = true;
    creation->tie.id = model->id;
    creation->tie.cut = creation_cut;
    session_tie(call->conn, &creation->tie);
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "creation", (double)model->id);
    json_add_item(reply, "model", describe_model(model, conn_peer(call->conn)));
    json_add_item(reply, "device", describe_device(model->device));
    int fds[1];
    const size_t n_fds = attach_export(reply, &model->export, fds);
    cJSON_AddRawToObject(reply, "offsets", job->text);
    free(job->text);
    job->text = NULL;
    if (!call_reply(call, reply, fds, n_fds))
        failure_set(&load->failure, WIRE_Cancelled, NULL);
}

static void publish_abandoned(struct call *call)
{
    struct creation *creation = call->context;
    creation->publishing = NULL;
}

static struct call *take_publishing(struct creation *creation)
{
    struct call *call = creation->publishing;
    creation->publishing = NULL;
    if (call)
        call->abandoned = NULL;
    return call;
}

void creation_publish(struct creation *creation, const struct publish_request *request, struct call *call)
{
    struct load *load = creation->load;
    struct load_job *job = &load->job;
    assert(!creation->publishing);
    creation->publishing = call;
    call->context = creation;
    call->abandoned = publish_abandoned;
    creation->lease = request->lease;
    creation->pin = request->pin;
    creation->ttl = request->ttl;
    client_text_clear(&creation->metadata);
    client_text_clear(&creation->late_tensors);
    creation->metadata = request->metadata;
    creation->late_tensors = request->tensors;
    job->device = load->device;
    job->manifest = load->model->manifest;
    job->planned = load->model->plan;
    job->filled = load->model->arena;
    job->metadata = &creation->metadata;
    job->tensors = &creation->late_tensors;
    job->bytes = load->model->plan->arena_bytes;
    job->key = load->model->key;
    load_queue(load, load_job_publish_creation);
}

/* Publish is refused, and the client still has the memory: it may mend what is wrong and try again. */
static void refuse(struct load *load)
{
    struct load_job *job = &load->job;
    struct call *call = take_publishing(load->request.creation);
    enum wire_error error = WIRE_StillWritable;
    cJSON *parameters = NULL;
    if (job->of_file) {
        manifest_failed(job, &error, &parameters);
    } else if (job->of_host) {
        error = WIRE_LimitExceeded;
        parameters = error_no_memory();
    } else {
        error = job->status == -EBUSY ? WIRE_StillWritable : WIRE_DeviceError;
        parameters = failure_fault(job->status, &job->fault);
    }
    manifest_parsed_free(&job->parsed);
    publication_clear(&job->published);
    if (call)
        call_fail(call, error, parameters);
    else
        cJSON_Delete(parameters);
}

/* The memory is sealed. Returns true: the load is over and was freed. */
static bool published(struct load *load)
{
    struct creation *creation = load->request.creation;
    struct model *model = load->model;
    struct load_job *job = &load->job;
    struct device *host = devices_host(load->loads->devices);
    if (job->parsed.plan) {
        take_parsed(load);
        registry_charge(model, host, load_overhead(model->header, model->plan));
    }
    model->published = job->published;
    job->published = PUBLICATION_NONE;
    const uint64_t metadata = model->manifest->metadata ? strlen(model->manifest->metadata) : 0;
    registry_charge(model, host, model->published.bytes + metadata);
    model_set_pinned(model, creation->pin);
    model_set_ttl(model, creation->ttl);
    load_show(load, LOAD_SEALING, MODEL_SEALING);
    struct call *call = take_publishing(creation);
    if (call && !waiters_add(&load->waiters, call, creation->lease ? WAIT_ATTACH : WAIT_JOINED))
        call = NULL;
    load_finish(load);
    return true;
}

bool creation_advance(struct load *load)
{
    struct load_job *job = &load->job;
    if (!load->request.creation->tied) {
        lend(load);
        return false;
    }
    if (job->status == 0)
        return published(load);
    if (job->status == -ENODEV)
        load_fail_device(load, job->status, &job->fault);
    refuse(load);
    return false;
}

void creation_give_up(struct load *load)
{
    struct call *call = load->request.creation ? take_publishing(load->request.creation) : NULL;
    if (call)
        call_fail(call, load->failure.error, failure_parameters(&load->failure));
}
