#include "client/engines/llama/weights.h"

#include "client/engines/llama/leases.h"
#include "client/engines/llama/say.h"
#include "proto/model_file.h"
#include "proto/shards.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define MODELS_MAX 8u  /* that one load of the engine can have */
#define NAMES_MAX  16u /* names that are tried if a model's own name is taken */

/* If the daemon does not answer for so long, it counts as lost. The drivers of many GPUs take seconds to start, and the
 * daemon waits for them before its first answer; of a load it tells how far it is. */
#define ANSWER_SECONDS  30
#define SILENCE_SECONDS 120

struct model {
    const char *path; /* of its file, for messages */
    rf_model *model;
    bool of_file[OPEN_FILES_MAX]; /* true for the files that it is made of */
    bool compare;                 /* ROCMFORGE_MODEL named it: its bytes must be compared with the file's */
};

struct weights {
    rf_client *client;
    struct leases *leases; /* NULL: no thread takes them again */
    struct open_files files;
    struct model models[MODELS_MAX];
    size_t n_models;
};

/* The file's path, for messages. */
static const char *path_text(const struct open_file *file)
{
    return file->path[0] ? file->path : "a file that was deleted";
}

/* --- the daemon --- */

static void set_patience(rf_client *client, time_t seconds)
{
    const struct timeval patience = {.tv_sec = seconds};
    setsockopt(rf_client_fd(client), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
}

/* NULL: there is none that answers. */
static rf_client *daemon_connect(bool quiet)
{
    static atomic_bool hangs; /* it is not waited for twice */
    rf_client *client = NULL;
    int r = atomic_load(&hangs) ? -ETIMEDOUT : rf_connect(NULL, &client);
    if (r == -ETIMEDOUT) {
        if (!quiet)
            say("the daemon did not answer in %d s", ANSWER_SECONDS);
        return NULL;
    }
    if (r < 0) {
        if (!quiet)
            say("no daemon: %s", rf_error_message(NULL));
        return NULL;
    }
    set_patience(client, ANSWER_SECONDS);
    r = rf_call(client, "Status", NULL, 0, NULL, 0, NULL, NULL);
    if (r < 0) {
        if (!quiet)
            say("the daemon does not answer: %s", rf_error_message(client));
        atomic_store(&hangs, r == -ETIMEDOUT);
        rf_close(client);
        return NULL;
    }
    set_patience(client, SILENCE_SECONDS);
    return client;
}

bool weights_daemon_answers(void)
{
    rf_client *client = daemon_connect(true);
    rf_close(client);
    return client;
}

struct device_search {
    const char *pci;
    char id[64];
};

static int device_reply(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct device_search *search = context;
    (void)continues, (void)fds, (void)n_fds;
    cJSON *reply = cJSON_Parse(parameters);
    const cJSON *device;
    cJSON_ArrayForEach (device, cJSON_GetObjectItemCaseSensitive(reply, "devices")) {
        const char *pci = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(device, "pci"));
        const char *id = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(device, "id"));
        if (pci && id && strcasecmp(pci, search->pci) == 0)
            snprintf(search->id, sizeof(search->id), "%s", id);
    }
    cJSON_Delete(reply);
    return 0;
}

/* Finds the daemon's name of the GPU by its PCI address, because ggml and the daemon number GPUs differently. */
static int device_find(rf_client *client, struct device_search *search)
{
    if (!search->pci) {
        strcpy(search->id, "host");
        return 0;
    }
    int r = rf_call(client, "Devices", NULL, 0, NULL, 0, device_reply, search);
    if (r < 0)
        say("the daemon does not tell its devices: %s", rf_error_message(client));
    else if (!search->id[0]) {
        say("the daemon keeps no models on the GPU %s", search->pci);
        r = -ENODEV;
    }
    return r;
}

/* --- one model --- */

/* Marks the files that the model is made of. first: index of its first file; place: what stands in it. path: set to the
 * path that the client library must open. What stands in the files decides, as in the engine and in the daemon, and not
 * their names. */
static int model_take_files(struct weights *weights, struct model *model, size_t first, const struct shard_place *place,
                            char path[static PATH_MAX])
{
    const struct open_file *file = &weights->files.files[first];
    struct shard_paths shards = {0};
    model->of_file[first] = true;
    if (!place->split || place->count < 2) { /* the same file, even if its path now leads to another one */
        snprintf(path, PATH_MAX, "/proc/self/fd/%d", file->fd);
        return 0;
    }
    int r = file->path[0] ? shards_find(file->path, false, shard_open_regular, &shards) : -ENOENT;
    for (size_t i = 0; r == 0 && i < shards.n; i++) {
        int found = open_files_find(&weights->files, shards.paths[i]);
        if (found < 0)
            r = -ENOENT;
        else
            model->of_file[found] = true;
    }
    shard_paths_free(&shards);
    if (r == -ENOENT)
        say("%s is one of %llu files of a model, and the engine does not have all of them open", path_text(file),
            (unsigned long long)place->count);
    else if (r < 0)
        say("the files of the model %s cannot be found: %s", path_text(file), strerror(-r));
    snprintf(path, PATH_MAX, "%s", file->path);
    return r;
}

/* The model is not resident yet. Tells the user why this start takes longer. */
static int load_progress(void *context, const rf_progress *progress)
{
    struct model *model = context;
    if (model->path && progress->total > 0) {
        say("the daemon loads %s, %.1f MB", model->path, (double)progress->total / 1e6);
        model->path = NULL; /* so that this is told once */
    }
    return 0;
}

/* Makes the name for an attempt: "x", then "x-native", "x-native-2" and so on. A model of the same file in another form
 * may have the first name. */
static void name_try(const char *path, unsigned attempt, char name[static RF_NAME_SIZE])
{
    char own[MODEL_NAME_MAX + 1], suffix[32] = "";
    model_name_derive(path[0] ? path : "model", own);
    if (attempt == 1)
        strcpy(suffix, "-native");
    else if (attempt > 1)
        snprintf(suffix, sizeof(suffix), "-native-%u", attempt);
    snprintf(name, RF_NAME_SIZE, "%.*s%s", (int)(RF_NAME_SIZE - 1 - strlen(suffix)), own, suffix);
}

/* Attaches to the resident model of the file. Loads the file first if there is none. */
static int model_attach(struct weights *weights, struct model *model, size_t first, const char *path,
                        const char *device)
{
    const char *named = getenv("ROCMFORGE_MODEL");
    if (named && named[0]) {
        model->compare = true;
        return rf_attach(weights->client, named, &model->model);
    }
    char name[RF_NAME_SIZE];
    int r = -EEXIST;
    for (unsigned attempt = 0; r == -EEXIST && attempt < NAMES_MAX; attempt++) {
        name_try(weights->files.files[first].path, attempt, name);
        const rf_load_options options = {
            .size = sizeof(options),
            .name = name,
            .form = "native",
            .device = device,
            .progress = load_progress,
            .context = model,
        };
        r = rf_load_attach(weights->client, path, &options, &model->model);
    }
    return r;
}

static int model_open(struct weights *weights, size_t first, const struct shard_place *place, const char *device)
{
    const struct open_file *file = &weights->files.files[first];
    char path[PATH_MAX];
    struct model *model = &weights->models[weights->n_models];
    *model = (struct model){.path = path_text(file)};
    int r = model_take_files(weights, model, first, place, path);
    if (r < 0)
        return r;
    r = model_attach(weights, model, first, path, device);
    if (r == 0 && model->compare && strcmp(rf_model_device(model->model), device) != 0) {
        say("%s is on %s, and %s should be on %s", rf_model_name(model->model), rf_model_device(model->model),
            path_text(file), device);
        rf_detach(model->model);
        return -ENODEV;
    }
    if (r < 0) {
        const char *why = rf_error_message(weights->client);
        say("the daemon does not give %s: %s", path_text(file), why[0] ? why : strerror(-r));
        return r;
    }
    weights->n_models++;
    return 0;
}

/* --- all of them --- */

/* Of the files of a split model the first one stands for all. A file that cannot be read counts as a whole model, and
 * opening it tells why it cannot be read. */
static enum weights_state open_each(struct weights *weights, const char *device)
{
    for (size_t i = 0; i < weights->files.n_files; i++) {
        /* Looking takes milliseconds, because the engine's vocabulary stands before the keys that tell. */
        struct shard_place place = {0};
        if (!weights->files.files[i].mapped ||
            (shard_peek(weights->files.files[i].fd, &place) == 0 && place.split && place.number > 0))
            continue;
        if (weights->n_models == MODELS_MAX) {
            say("the engine has more than %u models open at once: not all are shared", MODELS_MAX);
            break;
        }
        model_open(weights, i, &place, device);
    }
    return weights->n_models > 0 ? WEIGHTS_READY : WEIGHTS_OTHER;
}

static enum weights_state look_at_files(struct weights *weights)
{
    int r = open_files_read(&weights->files);
    if (r < 0) {
        say("/proc/self cannot be read, so it is not known which files the engine has open: %s", strerror(-r));
        return WEIGHTS_OTHER;
    }
    if (weights->files.n_files == 0)
        return WEIGHTS_NONE;
    for (size_t i = 0; i < weights->files.n_files; i++)
        if (weights->files.files[i].mapped)
            return WEIGHTS_READY;
    say("the engine reads %s itself and does not map it, so its weights are not shared: leave out --no-mmap, or use "
        "-lm mmap",
        path_text(&weights->files.files[0]));
    return WEIGHTS_OTHER;
}

enum weights_state weights_open(const char *pci, struct weights **ret)
{
    struct weights *weights = calloc(1, sizeof(*weights));
    if (!weights) {
        say("no memory for a list of the open files");
        return WEIGHTS_OTHER;
    }
    struct device_search search = {.pci = pci};
    enum weights_state state = look_at_files(weights);
    if (state == WEIGHTS_READY) {
        weights->client = daemon_connect(false);
        state = weights->client && device_find(weights->client, &search) == 0 ? open_each(weights, search.id)
                                                                              : WEIGHTS_OTHER;
    }
    if (state != WEIGHTS_READY) {
        weights_close(weights);
        return state;
    }
    const int r = leases_keep(weights->client, &weights->leases);
    if (r < 0)
        say("the weights are not held for this engine any more once the daemon is started anew: %s", strerror(-r));
    *ret = weights;
    return state;
}

void weights_close(struct weights *weights)
{
    if (!weights)
        return;
    leases_end(weights->leases);
    for (size_t i = 0; i < weights->n_models; i++)
        rf_detach(weights->models[i].model);
    rf_close(weights->client);
    free(weights);
}

/* --- tensors --- */

/* ggml has four dimensions. If the file has more, all further ones must be 1. */
static bool same_shape(const rf_tensor *have, const int64_t shape[static 4])
{
    for (uint32_t i = 0; i < RF_DIMS_MAX; i++) {
        uint64_t n = i < have->n_dims ? have->shape[have->n_dims - 1 - i] : 1;
        if (n != (i < 4 ? (uint64_t)shape[i] : 1))
            return false;
    }
    return true;
}

static uint64_t elements(const int64_t shape[static 4])
{
    return (uint64_t)shape[0] * (uint64_t)shape[1] * (uint64_t)shape[2] * (uint64_t)shape[3];
}

/* Whether both have the same number of elements. An engine may give a tensor another shape than the file; its bytes
 * stay in the same order. */
static bool reshaped(const rf_tensor *have, const int64_t shape[static 4])
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < have->n_dims; i++)
        n *= have->shape[i];
    return n == elements(shape);
}

/* Whether all resident bytes are equal to the file's. */
static bool same_bytes(const rf_model *model, const rf_tensor *tensor, const void *data)
{
    static unsigned char part[1 << 20]; /* only one thread at a time calls this */
    for (uint64_t at = 0; at < tensor->bytes; at += sizeof(part)) {
        size_t n = tensor->bytes - at < sizeof(part) ? (size_t)(tensor->bytes - at) : sizeof(part);
        if (rf_model_read(model, tensor->offset + at, part, n) < 0 ||
            memcmp(part, (const unsigned char *)data + at, n) != 0)
            return false;
    }
    return true;
}

static int tensor_check(const struct model *model, const struct weights_tensor *want, const rf_tensor *have,
                        const char **reason)
{
    *reason = NULL;
    if (have->type_id != want->type)
        *reason = "it has another type";
    else if (strcmp(have->form, "native") != 0 && strcmp(have->form, have->type) != 0)
        *reason = "it was decoded";
    else if (have->bytes != want->bytes || !reshaped(have, want->shape))
        *reason = "it has another shape";
    else if (!same_shape(have, want->shape) && want->padding > 0)
        *reason = "it is seen in another shape";
    else if (have->padding < want->padding)
        *reason = "the GPU's kernels want zeros behind it";
    else if (model->compare && want->data && !same_bytes(model->model, have, want->data))
        *reason = "its bytes are others than the file's";
    return *reason ? -EINVAL : 0;
}

static int find(const struct weights *weights, const struct weights_tensor *tensor, const void **ret,
                const char **reason)
{
    int file = tensor->data ? open_files_at(&weights->files, tensor->data, tensor->bytes) : -1;
    *reason = tensor->data && file < 0 ? "its bytes come from elsewhere" : "the resident model has no such tensor";
    for (size_t i = 0; i < weights->n_models; i++) {
        const struct model *model = &weights->models[i];
        rf_tensor have;
        if ((tensor->data && (file < 0 || !model->of_file[file])) ||
            rf_model_find(model->model, tensor->name, &have) < 0)
            continue;
        int r = tensor_check(model, tensor, &have, reason);
        if (r == 0)
            *ret = have.data;
        return r;
    }
    return -ENOENT;
}

int weights_find(const struct weights *weights, const struct weights_tensor *tensor, const void **ret,
                 const char **reason)
{
    leases_lock(weights->leases);
    const int r = find(weights, tensor, ret, reason);
    leases_unlock(weights->leases);
    return r;
}

bool weights_has(const struct weights *weights, const void *data)
{
    for (size_t i = 0; i < weights->n_models; i++) {
        uintptr_t start = (uintptr_t)rf_model_data(weights->models[i].model);
        if ((uintptr_t)data >= start && (uintptr_t)data - start < rf_model_bytes(weights->models[i].model))
            return true;
    }
    return false;
}

const struct open_files *weights_files(const struct weights *weights)
{
    return &weights->files;
}

const char *weights_text(const struct weights *weights)
{
    static char text[512];
    size_t used = 0;
    for (size_t i = 0; i < weights->n_models && used < sizeof(text); i++) {
        const rf_model *model = weights->models[i].model;
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s on %s", i > 0 ? ", " : "",
                                 rf_model_name(model), rf_model_device(model));
    }
    return text;
}
