#include "client/attach.h"

#include "client/attached.h"
#include "client/call.h"
#include "client/connection.h"
#include "client/error.h"
#include "client/fields.h"
#include "client/import.h"
#include "client/import_find.h"
#include "client/metadata.h"
#include "client/options.h"
#include "client/tensors.h"
#include "proto/base64.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The most bytes of a handle. IPC handles have 64. */
#define HANDLE_MAX 256u

/* A call of Attach or Load that is running. */
struct attaching {
    rf_model *model;
    const char *method;
    rf_reply_fn *reply;       /* or NULL */
    rf_progress_fn *progress; /* or NULL */
    void *context;            /* of both */

    /* Gets the last reply first; NULL: there is no such function. Returns 0: the reply grants a lease; 1: it was
     * another one, and was taken; or a negative errno. */
    int (*other)(void *context, cJSON **parameters, struct frame_message *message);
    void *other_context;
    bool other_taken;
};

static int fail_reply(const struct attaching *attaching, const char *what)
{
    return client_fail_answer(attaching->model->client, attaching->method, what);
}

/* Takes the descriptor whose index is in a field. *ret becomes -1 if the field is null or missing. Returns 0, or
 * -EPROTO if the message has no such descriptor. */
static int take_fd(const cJSON *reply, const char *key, struct frame_message *message, int *ret)
{
    *ret = -1;
    if (!field(reply, key))
        return 0;
    uint64_t index;
    if (!field_integer(reply, key, &index))
        return -EPROTO;
    int fd = frame_message_take_fd(message, (int64_t)index);
    if (fd < 0)
        return -EPROTO;
    *ret = fd;
    return 0;
}

static int model_read_reply(const struct attaching *attaching)
{
    rf_model *model = attaching->model;
    const cJSON *of_model = field(model->reply, "model");
    const cJSON *device = field(model->reply, "device");
    model->name = field_text(of_model, "name");
    model->device = field_text(device, "id");
    model->kind = field_text(device, "kind");
    model->uuid = field_text(device, "uuid");
    model->pci = field_text(device, "pci");
    if (!model->name || !field_integer(of_model, "id", &model->id))
        return fail_reply(attaching, "the model");
    if (!model->device || !model->kind)
        return fail_reply(attaching, "the device");
    return 0;
}

static int model_map_memory(const struct attaching *attaching, int fd)
{
    rf_model *model = attaching->model;
    struct import_fault fault = {{0}};
    struct import_source source = {
        .device = model->device, .uuid = model->uuid, .pci = model->pci, .fd = fd, .bytes = model->bytes};
    uint8_t handle[HANDLE_MAX];
    const cJSON *text = field(model->reply, "handle");
    if (text) {
        int64_t size = cJSON_IsString(text) ? base64_decode(handle, sizeof(handle), text->valuestring) : -EINVAL;
        if (size < 0)
            return fail_reply(attaching, "the handle");
        source.handle = handle;
        source.handle_size = (size_t)size;
    }
    int r = import_find(model->kind, &model->module, &fault);
    if (r == 0 && model->bytes > 0)
        r = model->module->open(&source, &model->mapping, &fault);
    return r < 0 ? client_fail(model->client, r, "%s", fault.text) : 0;
}

/* Reads the last reply, and maps the table and the memory. */
static int attach_reply(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    struct attaching *attaching = context;
    rf_model *model = attaching->model;
    struct frame_message none = {0}; /* the descriptors are ours */
    int r = !continues && attaching->other ? attaching->other(attaching->other_context, parameters, message) : 0;
    attaching->other_taken = r == 1;
    if (r != 0)
        return r;
    r = client_give(model->client, attaching->reply, attaching->context, *parameters, continues, &none);
    if (r != 0 && !continues) /* it is given back then */
        model->leased = field_integer(*parameters, "lease", &model->lease);
    if (r != 0)
        return r;
    if (continues) /* the model is still being loaded */
        return client_progress(model->client, attaching->method, field(*parameters, "progress"), attaching->progress,
                               attaching->context);
    model->reply = *parameters;
    *parameters = NULL;
    model->leased = field_integer(model->reply, "lease", &model->lease);
    if (!model->leased) /* without its id the lease cannot be ended by Detach, only by closing the connection */
        return client_break_answer(model->client, attaching->method, "the lease");
    int fd, table_fd;
    if (take_fd(model->reply, "fd", message, &fd) < 0)
        return fail_reply(attaching, "the descriptor of the memory");

    r = take_fd(model->reply, "table", message, &table_fd);
    if (r < 0)
        r = fail_reply(attaching, "the descriptor of the table");
    if (r == 0 && take_fd(model->reply, "header", message, &model->header_fd) < 0)
        r = fail_reply(attaching, "the descriptor of the header");
    if (r == 0)
        r = model_read_reply(attaching);
    if (r == 0)
        r = tensors_map(model, table_fd);
    if (r == 0)
        r = model_map_memory(attaching, fd);
    if (fd >= 0)
        close(fd);
    if (table_fd >= 0)
        close(table_fd);
    return r;
}

static void model_unmap(rf_model *model)
{
    if (model->mapping)
        model->module->close(model->mapping);
    model->mapping = NULL;
    if (model->table)
        munmap((void *)model->table, model->table_bytes);
    model->table = NULL;
    metadata_free(model->metadata);
    model->metadata = NULL;
    if (model->header)
        munmap((void *)model->header, model->header_bytes);
    model->header = NULL;
    if (model->header_fd >= 0)
        close(model->header_fd);
    model->header_fd = -1;
}

void model_free(rf_model *model)
{
    model_unmap(model);
    LIST_REMOVE(model, link);
    cJSON_Delete(model->reply);
    free(model);
}

/* Ends the lease. */
static int model_end_lease(rf_model *model)
{
    char parameters[64];
    snprintf(parameters, sizeof(parameters), "{\"lease\":%" PRIu64 "}", model->lease);
    return client_call(model->client, &(struct call){.method = "Detach", .parameters = parameters});
}

/* Attaching failed after the daemon granted the lease: ends the lease. The recorded message stays the first failure's.
 */
static int attach_undo(rf_model *model, int error)
{
    char message[CLIENT_MESSAGE_SIZE];
    memcpy(message, model->client->message, sizeof(message));
    model_unmap(model);
    model_end_lease(model);
    client_clear(model->client);
    return client_fail(model->client, error, "%s", message);
}

/* The parameters of Attach as JSON text; the caller calls cJSON_free(). NULL: no memory. */
static char *attach_parameters(const char *name, const rf_attach_options *options)
{
    cJSON *object = cJSON_CreateObject();
    char *text = NULL;
    if (cJSON_AddStringToObject(object, "name", name) && cJSON_AddTrueToObject(object, "table") &&
        cJSON_AddTrueToObject(object, "header") &&
        (options->deadline_seconds == 0 || cJSON_AddNumberToObject(object, "deadline", options->deadline_seconds)))
        text = cJSON_PrintUnformatted(object);
    cJSON_Delete(object);
    return text;
}

/* Makes the call. After a failure the model is freed; not after 1, which `other` has returned. */
static int attach_call(struct attaching *attaching, struct call call, rf_model **ret)
{
    rf_model *model = attaching->model;
    call.reply = attach_reply;
    call.context = attaching;
    int r = client_call(model->client, &call);
    if (r == 1 && attaching->other_taken)
        return 1;
    if (r != 0) {
        if (model->leased)
            r = attach_undo(model, r);
        model_free(model);
        return r;
    }
    *ret = model;
    return 0;
}

/* A model that is not attached yet. NULL: no memory; the client has the message. */
static rf_model *model_new(rf_client *client)
{
    rf_model *model = calloc(1, sizeof(*model));
    if (!model) {
        client_fail(client, -ENOMEM, "no memory to attach");
        return NULL;
    }
    model->client = client;
    model->header_fd = -1;
    LIST_INSERT_HEAD(&client->models, model, link);
    return model;
}

int model_attach(rf_client *client, struct call call, rf_reply_fn *reply, rf_progress_fn *progress, void *context,
                 rf_model **ret)
{
    struct attaching attaching = {
        .model = model_new(client), .method = call.method, .reply = reply, .progress = progress, .context = context};
    return attaching.model ? attach_call(&attaching, call, ret) : -ENOMEM;
}

int model_attach_or(rf_client *client, struct call call, rf_progress_fn *progress, void *context,
                    int (*other)(void *other_context, cJSON **parameters, struct frame_message *message),
                    void *other_context, rf_model **ret)
{
    struct attaching attaching = {.model = model_new(client),
                                  .method = call.method,
                                  .progress = progress,
                                  .context = context,
                                  .other = other,
                                  .other_context = other_context};
    int r = attaching.model ? attach_call(&attaching, call, ret) : -ENOMEM;
    if (r == 1) { /* it was another reply */
        model_free(attaching.model);
        *ret = NULL;
        return 0;
    }
    return r;
}

static int attach(rf_client *client, const char *name, const rf_attach_options *options, rf_model **ret)
{
    char *parameters = attach_parameters(name, options);
    if (!parameters)
        return client_fail(client, -ENOMEM, "no memory to attach");
    const struct call call = {.method = "Attach", .parameters = parameters, .more = options->progress};
    int r = model_attach(client, call, NULL, options->progress, options->context, ret);
    cJSON_free(parameters);
    return r;
}

int rf_attach_with(rf_client *client, const char *name, const rf_attach_options *options, rf_model **ret)
{
    rf_attach_options all;
    client_clear(client);
    int r = client_options(client, options, &all, sizeof(all));
    if (r < 0)
        return r;
    if (!(all.deadline_seconds >= 0) || isinf(all.deadline_seconds))
        return client_fail(client, -EINVAL, "the deadline is not a valid number of seconds: %g", all.deadline_seconds);
    return attach(client, name, &all, ret);
}

int rf_attach(rf_client *client, const char *name, rf_model **ret)
{
    return rf_attach_with(client, name, NULL, ret);
}

int rf_detach(rf_model *model)
{
    if (!model)
        return 0;
    if (model->client->calling)
        return client_fail(model->client, -EDEADLK, "another call is under way on this connection");
    model_unmap(model);
    /* In a forked process the lease belongs to the parent; and rf_reconnect() may not have got one. */
    int r = client_is_forked(model->client) || !model->leased ? 0 : model_end_lease(model);
    model_free(model);
    return r;
}
