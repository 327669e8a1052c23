/* Creations: memory that the daemon gives to a client, which fills it and has it sealed as a model. */
#include "client/attach.h"
#include "client/call.h"
#include "client/connection.h"
#include "client/error.h"
#include "client/fields.h"
#include "client/import.h"
#include "client/import_find.h"
#include "client/options.h"
#include "proto/base64.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The most bytes of a handle. IPC handles have 64. */
#define HANDLE_MAX 256u

struct rf_creation {
    rf_client *client;
    cJSON *reply;
    uint64_t id;
    uint64_t bytes;
    const cJSON *offsets; /* of `reply` */
    const struct import_module *module;
    struct import_mapping *mapping; /* NULL: unmapped */
};

/* --- mapping --- */

static int fail_reply(rf_client *client, const char *what)
{
    return client_fail_answer(client, "Create", what);
}

static int creation_read(rf_creation *creation, struct import_source *ret, const char **ret_kind)
{
    rf_client *client = creation->client;
    const cJSON *device = field(creation->reply, "device");
    *ret_kind = field_text(device, "kind");
    *ret = (struct import_source){
        .device = field_text(device, "id"),
        .uuid = field_text(device, "uuid"),
        .pci = field_text(device, "pci"),
        .fd = -1,
        .writable = 1,
    };
    if (!ret->device || !*ret_kind)
        return fail_reply(client, "the device");
    if (!field_integer(creation->reply, "creation", &creation->id))
        return fail_reply(client, "the creation");
    if (!field_integer(field(creation->reply, "model"), "bytes", &creation->bytes) || creation->bytes == 0)
        return fail_reply(client, "the model");
    creation->offsets = field(creation->reply, "offsets");
    ret->bytes = creation->bytes;
    return cJSON_IsArray(creation->offsets) ? 0 : fail_reply(client, "the offsets");
}

static int creation_map(rf_creation *creation, int fd)
{
    rf_client *client = creation->client;
    struct import_fault fault = {{0}};
    struct import_source source;
    uint8_t handle[HANDLE_MAX];
    const char *kind;
    int r = creation_read(creation, &source, &kind);
    if (r < 0)
        return r;
    source.fd = fd;
    const cJSON *text = field(creation->reply, "handle");
    if (text) {
        const int64_t size = cJSON_IsString(text) ? base64_decode(handle, sizeof(handle), text->valuestring) : -EINVAL;
        if (size < 0)
            return fail_reply(client, "the handle");
        source.handle = handle;
        source.handle_size = (size_t)size;
    }
    r = import_find(kind, &creation->module, &fault);
    if (r == 0)
        r = creation->module->open(&source, &creation->mapping, &fault);
    return r < 0 ? client_fail(client, r, "%s", fault.text) : 0;
}

static void creation_free(rf_creation *creation)
{
    if (creation->mapping)
        creation->module->close(creation->mapping);
    cJSON_Delete(creation->reply);
    free(creation);
}

/* Takes the reply over. */
static int creation_new(rf_client *client, cJSON *reply, int fd, rf_creation **ret)
{
    rf_creation *creation = calloc(1, sizeof(*creation));
    if (!creation) {
        cJSON_Delete(reply);
        return client_fail(client, -ENOMEM, "no memory for a creation");
    }
    creation->client = client;
    creation->reply = reply;
    const int r = creation_map(creation, fd);
    if (r < 0) {
        creation_free(creation);
        return r;
    }
    *ret = creation;
    return 0;
}

int rf_creation_of(rf_client *client, const char *reply, int fd, rf_creation **ret)
{
    client_clear(client);
    cJSON *parsed = cJSON_Parse(reply);
    if (!cJSON_IsObject(parsed)) {
        cJSON_Delete(parsed);
        return client_fail(client, -EINVAL, "that is no reply to Create");
    }
    return creation_new(client, parsed, fd, ret);
}

/* --- Create --- */

/* A text in a sealed file in memory. */
static int text_file(rf_client *client, const char *text, size_t size)
{
    int fd = memfd_create("rocmforge-text", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int r = fd < 0 ? -errno : 0;
    for (size_t at = 0; r == 0 && at < size;) {
        const ssize_t n = write(fd, text + at, size - at);
        if (n < 0 && errno != EINTR)
            r = -errno;
        at += n > 0 ? (size_t)n : 0;
    }
    if (r == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        r = -errno;
    if (r == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return client_fail(client, r, "a file in memory for a text: %s", strerror(-r));
}

static cJSON *numbers(const uint64_t *values, uint32_t n)
{
    cJSON *array = cJSON_CreateArray();
    for (uint32_t i = 0; i < n; i++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber((double)values[i]));
    return array;
}

static cJSON *tensor_json(const rf_new_tensor *tensor)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", tensor->name);
    cJSON_AddStringToObject(object, "type", tensor->type);
    cJSON_AddItemToObject(object, "shape", numbers(tensor->shape, tensor->n_dims));
    if (tensor->strides)
        cJSON_AddItemToObject(object, "strides", numbers(tensor->strides, tensor->n_dims));
    if (tensor->offset != RF_ANYWHERE)
        cJSON_AddNumberToObject(object, "offset", (double)tensor->offset);
    return object;
}

/* The list of tensors in a file in memory. Returns the descriptor. */
static int tensors_file(rf_client *client, const rf_new_tensor *tensors, size_t n)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return client_fail(client, -ENOMEM, "no memory for the tensors");
    int wrong = n > 0 && !tensors;
    for (size_t i = 0; i < n && !wrong; i++) {
        wrong = !tensors[i].name || !tensors[i].type || tensors[i].n_dims > RF_DIMS_MAX;
        cJSON *object = wrong ? NULL : tensor_json(&tensors[i]);
        char *one = object ? cJSON_PrintUnformatted(object) : NULL;
        cJSON_Delete(object);
        fprintf(out, "%c%s", i ? ',' : '[', one ? one : "");
        cJSON_free(one);
    }
    fputs(n ? "]" : "[]", out);
    const int failed = ferror(out);
    const int closed = fclose(out);
    int fd = wrong ? client_fail(client, -EINVAL, "a tensor has no name, no type, or too many dimensions")
             : closed != 0 || failed ? client_fail(client, -ENOMEM, "no memory for the tensors")
                                     : text_file(client, text, size);
    free(text);
    return fd;
}

static int options_read(rf_client *client, const rf_create_options *options, rf_create_options *ret)
{
    int r = client_options(client, options, ret, sizeof(*ret));
    if (r < 0)
        return r;
    const double seconds[] = {ret->deadline_seconds, ret->wait_for_memory_seconds};
    for (size_t i = 0; i < 2; i++)
        if (!(seconds[i] >= 0) || isinf(seconds[i]))
            return client_fail(client, -EINVAL, "a time in the options is not a valid number of seconds: %g",
                               seconds[i]);
    return 0;
}

/* NULL: no memory. */
static char *create_parameters(const char *name, const rf_create_options *options, bool tensors)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = cJSON_AddStringToObject(object, "name", name) && cJSON_AddTrueToObject(object, "table") &&
              cJSON_AddTrueToObject(object, "header") && cJSON_AddBoolToObject(object, "wait", !options->no_wait);
    ok = ok && (!options->key || cJSON_AddStringToObject(object, "key", options->key)) &&
         (!options->device || cJSON_AddStringToObject(object, "device", options->device)) &&
         (!tensors || cJSON_AddNumberToObject(object, "tensorsFile", 0)) &&
         (!options->bytes || cJSON_AddNumberToObject(object, "bytes", (double)options->bytes)) &&
         (!options->any_publisher || cJSON_AddTrueToObject(object, "anyPublisher")) &&
         (!options->private_ || cJSON_AddTrueToObject(object, "private")) &&
         (!options->public_ || cJSON_AddTrueToObject(object, "public")) &&
         (!options->replace || cJSON_AddTrueToObject(object, "replace")) &&
         (!options->wait_for_memory_seconds ||
          cJSON_AddNumberToObject(object, "waitForMemory", options->wait_for_memory_seconds)) &&
         (!options->deadline_seconds || cJSON_AddNumberToObject(object, "deadline", options->deadline_seconds));
    char *text = ok ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    return text;
}

/* What the last reply to Create was, if it was no lease. */
struct creating {
    rf_client *client;
    rf_creation *creation;
};

static int create_reply(void *context, cJSON **parameters, struct frame_message *message)
{
    struct creating *creating = context;
    if (!field(*parameters, "creation"))
        return 0;
    uint64_t index;
    int fd = -1;
    if (field(*parameters, "fd")) {
        if (!field_integer(*parameters, "fd", &index) || (fd = frame_message_take_fd(message, (int64_t)index)) < 0)
            return client_break_answer(creating->client, "Create", "the descriptor of the memory");
    }
    cJSON *reply = *parameters;
    *parameters = NULL;
    int r = creation_new(creating->client, reply, fd, &creating->creation);
    if (fd >= 0)
        close(fd);
    return r < 0 ? r : 1;
}

int rf_create(rf_client *client, const char *name, const rf_new_tensor *tensors, size_t n,
              const rf_create_options *options, rf_creation **ret, rf_model **ret_model)
{
    rf_create_options all;
    client_clear(client);
    int r = options_read(client, options, &all);
    int fd = -1;
    if (r == 0 && (tensors || n > 0)) {
        fd = tensors_file(client, tensors, n);
        r = fd < 0 ? fd : 0;
    }
    if (r < 0)
        return r;
    char *text = create_parameters(name, &all, fd >= 0);
    struct creating creating = {.client = client};
    const struct call call = {
        .method = "Create", .parameters = text, .more = all.progress, .fds = &fd, .n_fds = fd >= 0 ? 1 : 0};
    rf_model *model = NULL;
    r = text ? model_attach_or(client, call, all.progress, all.context, create_reply, &creating, &model)
             : client_fail(client, -ENOMEM, "no memory for a request");
    cJSON_free(text);
    if (fd >= 0)
        close(fd);
    if (r < 0)
        return r;
    *ret = creating.creation;
    *ret_model = model;
    return 0;
}

/* --- the creation --- */

uint64_t rf_creation_id(const rf_creation *creation)
{
    return creation->id;
}

void *rf_creation_data(const rf_creation *creation)
{
    return creation->mapping ? (void *)(uintptr_t)creation->mapping->data : NULL;
}

uint64_t rf_creation_bytes(const rf_creation *creation)
{
    return creation->bytes;
}

int rf_creation_offset(const rf_creation *creation, size_t index, uint64_t *ret)
{
    const cJSON *offset = index <= INT32_MAX ? cJSON_GetArrayItem(creation->offsets, (int)index) : NULL;
    if (!offset || !cJSON_IsNumber(offset))
        return client_fail(creation->client, -ERANGE, "the creation has %d tensors",
                           cJSON_GetArraySize(creation->offsets));
    *ret = (uint64_t)offset->valuedouble;
    return 0;
}

void rf_creation_unmap(rf_creation *creation)
{
    if (creation->mapping)
        creation->module->close(creation->mapping);
    creation->mapping = NULL;
}

/* fds: of the texts, which the caller closes; *ret_n: how many. NULL: there is no memory, or *ret_error is another
 * reason. */
static char *publish_parameters(const rf_creation *creation, const rf_publish_options *options, int fds[2],
                                size_t *ret_n, int *ret_error)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = cJSON_AddNumberToObject(object, "creation", (double)creation->id) &&
              cJSON_AddTrueToObject(object, "lease") && cJSON_AddTrueToObject(object, "table") &&
              cJSON_AddTrueToObject(object, "header") && (!options->pin || cJSON_AddTrueToObject(object, "pin")) &&
              (!options->ttl_seconds || cJSON_AddNumberToObject(object, "ttl", (double)options->ttl_seconds));
    size_t n = 0;
    *ret_error = 0;
    if (options->tensors || options->n_tensors) {
        fds[n] = tensors_file(creation->client, options->tensors, options->n_tensors);
        *ret_error = fds[n] < 0 ? fds[n] : 0;
        ok = ok && cJSON_AddNumberToObject(object, "tensorsFile", (double)n);
        n += *ret_error == 0;
    }
    if (options->metadata && *ret_error == 0) {
        fds[n] = text_file(creation->client, options->metadata, strlen(options->metadata));
        *ret_error = fds[n] < 0 ? fds[n] : 0;
        ok = ok && cJSON_AddNumberToObject(object, "metadataFile", (double)n);
        n += *ret_error == 0;
    }
    *ret_n = n;
    char *text = ok && *ret_error == 0 ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    return text;
}

int rf_publish(rf_creation *creation, const rf_publish_options *options, rf_model **ret)
{
    rf_client *client = creation->client;
    rf_publish_options all;
    client_clear(client);
    int fds[2], r = client_options(client, options, &all, sizeof(all));
    if (r < 0)
        return r;
    rf_creation_unmap(creation);
    size_t n;
    char *text = publish_parameters(creation, &all, fds, &n, &r);
    const struct call call = {.method = "Publish", .parameters = text, .fds = fds, .n_fds = n};
    rf_model *model = NULL;
    if (text)
        r = model_attach(client, call, NULL, NULL, NULL, &model);
    else if (r == 0)
        r = client_fail(client, -ENOMEM, "no memory for a request");
    cJSON_free(text);
    while (n > 0)
        close(fds[--n]);
    if (r < 0)
        return r;
    creation_free(creation);
    *ret = model;
    return 0;
}

void rf_creation_forget(rf_creation *creation)
{
    if (creation)
        creation_free(creation);
}

int rf_creation_end(rf_creation *creation)
{
    if (!creation)
        return 0;
    rf_client *client = creation->client;
    char name[RF_NAME_SIZE + 32], parameters[RF_NAME_SIZE + 64];
    const char *full = field_text(field(creation->reply, "model"), "name");
    int r = 0;
    if (full && !client_is_forked(client)) {
        const size_t length = strcspn(full, "#");
        snprintf(name, sizeof(name), "%.*s#%" PRIu64, (int)(length < RF_NAME_SIZE ? length : 0), full, creation->id);
        snprintf(parameters, sizeof(parameters), "{\"name\":\"%s\"}", name); /* a name needs no escapes */
        r = client_call(client, &(struct call){.method = "Cancel", .parameters = parameters});
        if (r == -ENOENT) /* it has ended already */
            r = 0;
    }
    creation_free(creation);
    return r;
}
