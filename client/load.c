/* Loading, planning and unloading. */
#include "client/attach.h"
#include "client/call.h"
#include "client/config.h"
#include "client/error.h"
#include "client/fields.h"
#include "client/files.h"
#include "client/options.h"
#include "proto/errors.h"
#include "proto/min.h"
#include "proto/model_file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* --- the request --- */

/* Copies the caller's options, and checks their numbers. */
static int options_read(rf_client *client, const rf_load_options *options, rf_load_options *ret)
{
    client_clear(client);
    int r = client_options(client, options, ret, sizeof(*ret));
    if (r < 0)
        return r;
    if (!(ret->deadline_seconds >= 0) || isinf(ret->deadline_seconds))
        return client_fail(client, -EINVAL, "the deadline is not a valid number of seconds: %g", ret->deadline_seconds);
    if (ret->ttl_seconds > FIELD_INTEGER_MAX)
        return client_fail(client, -EINVAL, "the time to live is too long");
    if (!(ret->wait_for_memory_seconds >= 0) || isinf(ret->wait_for_memory_seconds))
        return client_fail(client, -EINVAL, "the time to wait for memory is not a valid number of seconds: %g",
                           ret->wait_for_memory_seconds);
    return 0;
}

static bool add_text(cJSON *object, const char *key, const char *text)
{
    return !text || cJSON_AddStringToObject(object, key, text);
}

static bool add_number(cJSON *object, const char *key, double number)
{
    return number == 0 || cJSON_AddNumberToObject(object, key, number);
}

static bool add_forms(cJSON *object, const rf_load_options *options)
{
    cJSON *array = options->n_forms > 0 ? cJSON_AddArrayToObject(object, "forms") : NULL;
    bool ok = array || options->n_forms == 0;
    for (size_t i = 0; i < options->n_forms && ok; i++) {
        cJSON *rule = cJSON_CreateObject();
        ok = cJSON_AddStringToObject(rule, "match", options->forms[i].match) &&
             cJSON_AddStringToObject(rule, "form", options->forms[i].form);
        ok = cJSON_AddItemToArray(array, rule) && ok;
    }
    return ok;
}

static bool add_group(cJSON *array, const rf_group *group)
{
    cJSON *object = cJSON_CreateObject(), *members = cJSON_AddArrayToObject(object, "members");
    bool ok = members && cJSON_AddStringToObject(object, "name", group->name) &&
              add_number(object, "stack", group->stack) && add_number(object, "heads", group->heads) &&
              add_text(object, "cut", group->cut);
    for (size_t i = 0; i < group->n_members && ok; i++)
        ok = cJSON_AddItemToArray(members, cJSON_CreateString(group->members[i]));
    return cJSON_AddItemToArray(array, object) && ok;
}

static bool add_layout(cJSON *object, const rf_load_options *options)
{
    cJSON *groups = options->n_groups > 0 ? cJSON_AddArrayToObject(object, "groups") : NULL;
    bool ok = add_text(object, "layout", options->layout) && (groups || options->n_groups == 0);
    for (size_t i = 0; i < options->n_groups && ok; i++)
        ok = add_group(groups, &options->groups[i]);
    if (options->tp_size == 0)
        return ok;
    cJSON *tp = cJSON_AddObjectToObject(object, "tp");
    return ok && tp && cJSON_AddNumberToObject(tp, "rank", options->tp_rank) &&
           cJSON_AddNumberToObject(tp, "size", options->tp_size) && add_number(tp, "heads", options->tp_heads) &&
           add_number(tp, "kvHeads", options->tp_kv_heads);
}

/* The parameters of Plan. NULL: no memory. */
static cJSON *plan_parameters(const rf_load_options *options, const struct files *files)
{
    cJSON *object = cJSON_CreateObject();
    cJSON *fds = cJSON_AddArrayToObject(object, "fds");
    bool ok = fds;
    for (size_t i = 0; i < files->n; i++)
        ok = ok && cJSON_AddItemToArray(fds, cJSON_CreateNumber((double)i));
    ok = ok && add_number(object, "added", (double)files->n_added) && add_text(object, "name", options->name) &&
         add_text(object, "form", options->form) && add_text(object, "device", options->device) &&
         add_text(object, "dequant", options->dequant) &&
         (!options->private_ || cJSON_AddTrueToObject(object, "private")) &&
         (!options->public_ || cJSON_AddTrueToObject(object, "public")) &&
         (!options->replace || cJSON_AddTrueToObject(object, "replace")) && add_forms(object, options) &&
         add_layout(object, options);
    if (ok)
        return object;
    cJSON_Delete(object);
    return NULL;
}

/* The parameters of Load: those of Plan and more. NULL: no memory. */
static cJSON *load_parameters(const rf_load_options *options, const struct files *files)
{
    cJSON *object = plan_parameters(options, files);
    bool ok = object && cJSON_AddBoolToObject(object, "wait", !options->no_wait) &&
              (!options->pin || cJSON_AddTrueToObject(object, "pin")) &&
              (!options->trace || cJSON_AddTrueToObject(object, "trace")) &&
              add_number(object, "waitForMemory", options->wait_for_memory_seconds) &&
              add_number(object, "ttl", (double)options->ttl_seconds) &&
              add_number(object, "deadline", options->deadline_seconds);
    if (ok)
        return object;
    cJSON_Delete(object);
    return NULL;
}

/* Opens the files of a model. Sends those that do not fit into one message with AddFiles first. */
static int bring_files(rf_client *client, struct files *files, const char *const *paths, size_t n)
{
    int r = files_find(files, client, paths, n);
    if (r < 0)
        return r;
    while ((r = files_open(files, client)) > 0) {
        char parameters[32 + 4 * FRAME_FDS_MAX], *at = parameters;
        for (size_t i = 0; i < files->n; i++)
            at += sprintf(at, "%s%zu", i == 0 ? "{\"fds\":[" : ",", i);
        strcpy(at, "]}");
        r = client_call(
            client,
            &(struct call){.method = "AddFiles", .parameters = parameters, .fds = files->fds, .n_fds = files->n});
        if (r < 0)
            return r;
        files->n_added += files->n;
    }
    return r;
}

/* Makes the call with these parameters and files. Deletes the parameters; if they are NULL, there was no memory for
 * them.
 */
static int call_with_files(rf_client *client, struct call call, cJSON *parameters, const struct files *files)
{
    char *text = parameters ? cJSON_PrintUnformatted(parameters) : NULL;
    cJSON_Delete(parameters);
    if (!text)
        return client_fail(client, -ENOMEM, "no memory for a request");
    call.parameters = text;
    call.fds = files->fds;
    call.n_fds = files->n;
    int r = client_call(client, &call);
    cJSON_free(text);
    return r;
}

/* --- loading --- */

/* A call of Load that is running. */
struct loading {
    rf_client *client;
    const rf_load_options *options;
    char name[RF_NAME_SIZE];
};

static int load_reply(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    struct loading *loading = context;
    const rf_load_options *options = loading->options;
    const cJSON *progress = field(*parameters, "progress");
    const char *name = field_text(field(*parameters, "model"), "name");
    if (!continues && (!name || strlen(name) >= sizeof(loading->name)))
        return client_break_answer(loading->client, "Load", "the model's name");
    int r = client_give(loading->client, options->reply, options->context, *parameters, continues, message);
    if (r == 0 && progress)
        r = client_progress(loading->client, "Load", progress, options->progress, options->context);
    if (!continues)
        strcpy(loading->name, name);
    return r;
}

/* Copies the options, and opens the file, or files, for files_close() to close. The name may stand in `link`. */
static int load_begin(rf_client *client, const char *const *paths, size_t n, const rf_load_options *options,
                      char link[RF_NAME_SIZE], rf_load_options *ret, struct files *ret_files)
{
    *ret_files = (struct files){.n = 0};
    int r = options_read(client, options, ret);
    if (r < 0)
        return r;
    link[0] = '\0';
    if (n > 0)
        files_link_name(paths[0], link);
    if (!ret->name && link[0]) {
        model_name_part(link, ret->tp_rank, ret->tp_size);
        ret->name = link;
    }
    if (ret->tp_size > 1 && ret->tp_heads == 0 && n > 0) /* else the daemon looks for them, if it may */
        (void)config_heads(paths[0], &ret->tp_heads, &ret->tp_kv_heads);
    return bring_files(client, ret_files, paths, n);
}

int rf_load_files(rf_client *client, const char *const *paths, size_t n, const rf_load_options *options, char *name)
{
    rf_load_options all;
    char link[RF_NAME_SIZE];
    struct files files;
    int r = load_begin(client, paths, n, options, link, &all, &files);
    struct loading loading = {.client = client, .options = &all};
    const struct call call = {.method = "Load", .more = true, .reply = load_reply, .context = &loading};
    if (r == 0)
        r = call_with_files(client, call, load_parameters(&all, &files), &files);
    files_close(&files);
    if (r == 0 && name)
        strcpy(name, loading.name);
    return r;
}

int rf_load(rf_client *client, const char *path, const rf_load_options *options, char *name)
{
    return rf_load_files(client, &path, 1, options, name);
}

int rf_load_attach(rf_client *client, const char *path, const rf_load_options *options, rf_model **ret)
{
    rf_load_options all;
    char link[RF_NAME_SIZE];
    struct files files;
    int r = load_begin(client, &path, 1, options, link, &all, &files);
    if (r == 0 && all.no_wait)
        r = client_fail(client, -EINVAL, "the option no_wait cannot be used when attaching");
    cJSON *parameters = r == 0 ? load_parameters(&all, &files) : NULL;
    if (parameters && (!cJSON_AddTrueToObject(parameters, "lease") || !cJSON_AddTrueToObject(parameters, "table") ||
                       !cJSON_AddTrueToObject(parameters, "header"))) {
        cJSON_Delete(parameters);
        parameters = NULL;
    }
    char *text = parameters ? cJSON_PrintUnformatted(parameters) : NULL;
    cJSON_Delete(parameters);
    const struct call call = {.method = "Load", .parameters = text, .more = true, .fds = files.fds, .n_fds = files.n};
    if (r == 0)
        r = text ? model_attach(client, call, all.reply, all.progress, all.context, ret)
                 : client_fail(client, -ENOMEM, "no memory for a request");
    cJSON_free(text);
    files_close(&files);
    return r;
}

/* --- planning --- */

struct planning {
    rf_client *client;
    const rf_load_options *options;
    rf_plan plan;
};

static int plan_reply(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    struct planning *planning = context;
    const rf_load_options *options = planning->options;
    const cJSON *fits = field(*parameters, "fits"), *evicts = field(*parameters, "evicts");
    const cJSON *seconds = field(*parameters, "seconds"), *error = field(*parameters, "error");
    rf_plan *plan = &planning->plan;
    if (!field_integer(*parameters, "bytes", &plan->bytes) || !field_integer(*parameters, "size", &plan->file_bytes) ||
        !field_integer(*parameters, "available", &plan->available) || !cJSON_IsBool(fits) || !cJSON_IsArray(evicts) ||
        (seconds && !cJSON_IsNumber(seconds)) || (error && !cJSON_IsString(error)))
        return client_break_answer(planning->client, "Plan", "a field of it");
    plan->fits = cJSON_IsTrue(fits);
    plan->there = field(*parameters, "model") ? 1 : 0;
    plan->evicts = (size_t)cJSON_GetArraySize(evicts);
    plan->error = error ? wire_error_errno(wire_error_find(error->valuestring)) : 0;
    plan->seconds = seconds ? seconds->valuedouble : -1;
    return client_give(planning->client, options->reply, options->context, *parameters, continues, message);
}

int rf_load_plan_files(rf_client *client, const char *const *paths, size_t n, const rf_load_options *options,
                       rf_plan *ret)
{
    rf_load_options all;
    char link[RF_NAME_SIZE];
    struct files files;
    int r = load_begin(client, paths, n, options, link, &all, &files);
    if (r == 0 && ret && ret->size == 0)
        r = client_fail(client, -EINVAL, "the size of the plan is not set");
    struct planning planning = {.client = client, .options = &all};
    const struct call call = {.method = "Plan", .reply = plan_reply, .context = &planning};
    if (r == 0)
        r = call_with_files(client, call, plan_parameters(&all, &files), &files);
    files_close(&files);
    if (r == 0 && ret) {
        size_t size = ret->size;
        memcpy(ret, &planning.plan, min_u64(size, sizeof(*ret)));
        ret->size = size;
    }
    return r;
}

int rf_load_plan(rf_client *client, const char *path, const rf_load_options *options, rf_plan *ret)
{
    return rf_load_plan_files(client, &path, 1, options, ret);
}

/* --- unloading --- */

int rf_unload(rf_client *client, const char *name)
{
    cJSON *object = cJSON_CreateObject();
    char *parameters = cJSON_AddStringToObject(object, "name", name) ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    int r = parameters ? client_call(client, &(struct call){.method = "Unload", .parameters = parameters})
                       : client_fail(client, -ENOMEM, "no memory for a request");
    cJSON_free(parameters);
    return r;
}
