#include "client/rfctl/run_place.h"

#include "client/rfctl/format.h"
#include "client/rfctl/headers.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "proto/module_path.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- the engine's GPUs --- */

/* What the backends that are beside the engine say of GPUs. */
enum backends {
    BACKENDS_UNKNOWN, /* there are none: they are in another folder, or in the program itself */
    BACKENDS_CPU,     /* there are some, and none for GPUs */
    BACKENDS_SHARED,  /* one for GPUs on which weights can be shared */
    BACKENDS_OTHER,   /* one for other GPUs */
};

/* Finds a program as execvp() does. */
static bool find_program(const char *name, char path[static PATH_MAX])
{
    const char *folders = strchr(name, '/') ? NULL : getenv("PATH");
    if (!folders)
        return realpath(name, path) != NULL;
    char candidate[PATH_MAX];
    return path_list_find(folders, name, X_OK, candidate) == 0 && realpath(candidate, path) != NULL;
}

static bool begins(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static enum backends backend_kind(const char *file)
{
    if (!begins(file, "libggml-") || !strstr(file, ".so"))
        return BACKENDS_UNKNOWN;
    file += strlen("libggml-");
    if (begins(file, "cuda.") || begins(file, "hip."))
        return BACKENDS_SHARED;
    if (begins(file, "cpu"))
        return BACKENDS_CPU;
    static const char *const no_gpus[] = {"base.", "blas.", "rpc.", "rocmforge.", NULL};
    for (size_t i = 0; no_gpus[i]; i++)
        if (begins(file, no_gpus[i]))
            return BACKENDS_UNKNOWN;
    return BACKENDS_OTHER;
}

static void look_into(const char *path, bool has[static BACKENDS_OTHER + 1])
{
    DIR *folder = opendir(path);
    for (const struct dirent *entry; folder && (entry = readdir(folder));)
        has[backend_kind(entry->d_name)] = true;
    if (folder)
        closedir(folder);
}

/* ggml looks for backends in the program's folder and in the current one. */
static enum backends backends_of(const char *name)
{
    char path[PATH_MAX];
    bool has[BACKENDS_OTHER + 1] = {false};
    if (!find_program(name, path))
        return BACKENDS_UNKNOWN;
    *strrchr(path, '/') = '\0';
    look_into(path[0] ? path : "/", has);
    look_into(".", has);
    return has[BACKENDS_SHARED]  ? BACKENDS_SHARED
           : has[BACKENDS_OTHER] ? BACKENDS_OTHER
           : has[BACKENDS_CPU]   ? BACKENDS_CPU
                                 : BACKENDS_UNKNOWN;
}

/* --- layers --- */

/* The number of layers of the model; 0: the file does not say it, or it cannot be true: each layer has a tensor. */
static uint64_t layers_of(const char *path)
{
    struct headers headers = {0};
    struct header_fault fault = {0};
    struct header_string architecture;
    char *refused = NULL, *paths[] = {(char *)path};
    uint64_t layers = 0;
    if (headers_read(paths, 1, &headers, &fault, &refused) < 0) {
        free(refused);
        return 0;
    }
    if (header_kv_string(model_header_find(headers.file, "general.architecture"), &architecture) == 0) {
        char *key = need_text("%.*s.block_count", (int)architecture.size, architecture.bytes);
        const struct header_kv *count = model_header_find(headers.file, key);
        if (!count || header_kv_u64(count, &layers) < 0 || layers > headers.file->n_tensors)
            layers = 0;
        free(key);
    }
    headers_clear(&headers);
    return layers;
}

/* A pattern for layers 0 to n - 1, and for the embeddings, which llama.cpp always keeps on the CPU. */
static char *pattern_of_first(uint64_t n)
{
    enum { NUMBER_MAX = 21 }; /* of a number and the mark after it */
    static const char start[] = "^(token_embd|blk\\.(", end[] = "))\\.=ROCmForge_Host";
    char *pattern = need_memory(sizeof(start) + n * NUMBER_MAX + sizeof(end)), *at = stpcpy(pattern, start);
    for (uint64_t i = 0; i < n; i++)
        at += sprintf(at, "%s%llu", i > 0 ? "|" : "", (unsigned long long)i);
    strcpy(at, end);
    return pattern;
}

/* --- the place --- */

/* Returns the number of the daemon's GPUs. *ret_first: the name of the first one, which the caller frees; not written
 * if there is none. */
static unsigned count_gpus(const cJSON *devices, char **ret_first)
{
    unsigned n = 0;
    const cJSON *device;
    cJSON_ArrayForEach (device, devices)
        if (!reply_is_host(reply_text(device, "kind")) && n++ == 0)
            *ret_first = need_text("%s", reply_text(device, "id"));
    return n;
}

static void place_on_host(struct run_place *place, char *pattern)
{
    place->device = need_text("host");
    place->pattern = pattern;
}

/* The number of the engine's GPU that has all layers: of -dev "CUDA1", or of -mg. */
static unsigned gpu_of(const struct run_words *words, bool one_gpu)
{
    const char *digits = words->device ? words->device + strcspn(words->device, "0123456789") : "";
    if (words->device)
        return digits[0] ? (unsigned)strtoul(digits, NULL, 10) : 0;
    return one_gpu || (words->split && strcmp(words->split, "none") == 0) ? (unsigned)words->main_gpu : 0;
}

/* If there are several GPUs, only the engine knows which one it uses first. Then no device is chosen here, and the
 * plug-in loads the model. If there is one, and nothing is known of the engine's backends, it is taken for the
 * engine's: distributions keep backends in a folder of their own. */
static void place_on_gpu(struct run_place *place, const struct run_words *words, unsigned n, const char *first,
                         enum backends backends)
{
    place->one_gpu = n > 1 && backends == BACKENDS_SHARED && !words->split && !words->device;
    const unsigned gpu = gpu_of(words, place->one_gpu);
    place->pattern = gpu > 0 ? need_text(".*=ROCmForge%u", gpu) : need_text(".*=ROCmForge");
    place->other_gpu = backends == BACKENDS_OTHER;
    if (gpu == 0 && n == 1 && !place->other_gpu && backends != BACKENDS_CPU)
        place->device = need_text("%s", first);
    else if (backends == BACKENDS_CPU || (n == 0 && backends == BACKENDS_UNKNOWN))
        place->device = need_text("host");
    place->named = words->device || words->split || gpu > 0;
    place->on_gpu = !place->device;
}

/* Some layers on the GPU: the CPU's are shared in host memory. */
static void place_some(struct run_place *place, uint64_t layers, uint64_t gpu_layers, unsigned n,
                       enum backends backends)
{
    if (backends == BACKENDS_CPU)
        place_on_host(place, need_text(".*=ROCmForge_Host"));
    else if (n == 0 && backends == BACKENDS_UNKNOWN) {
        place_on_host(place, need_text(".*=ROCmForge_Host"));
        place->also = "; the daemon has no GPU, so all layers are in host memory";
    } else {
        place_on_host(place, pattern_of_first(layers + 1 - gpu_layers));
        place->also = "; layers on the GPU are its own";
    }
}

static int take_device(const struct rfctl *ctl, const struct run_words *words, unsigned n, struct run_place *place)
{
    const char *device = ctl->options.device;
    const bool host = place->device && reply_is_host(place->device);
    if (reply_is_host(device)) {
        free(place->pattern);
        place->pattern = need_text(".*=ROCmForge_Host");
        place->also = NULL;
        place->one_gpu = false;
        place->on_gpu = false;
    } else if (host && (words->gpu_layers != RUN_ALL_LAYERS || (words->device && strcmp(words->device, "none") == 0))) {
        err_line("--device %s contradicts %s: these options keep layers on the CPU, whose weights are in host memory",
                 device, words->device ? "-dev none" : "-ngl");
        return STATUS_USAGE;
    } else if (n > 1)
        place->also = "; this is of use if it is the engine's GPU, else its plug-in loads the model there";
    free(place->device);
    place->device = need_text("%s", device);
    return STATUS_DONE;
}

int run_place_find(struct rfctl *ctl, const struct run_words *words, struct run_place *ret)
{
    cJSON *reply = NULL;
    int status = ctl_ask(ctl, "Devices", NULL, "list devices", &reply);
    if (status != STATUS_DONE)
        return status;
    char *first = NULL;
    ret->devices = cJSON_DetachItemFromObjectCaseSensitive(reply, "devices");
    cJSON_Delete(reply);
    const unsigned n = count_gpus(ret->devices, &first);
    const enum backends backends = backends_of(ctl->arguments[0]);
    const uint64_t layers = words->gpu_layers > 0 ? layers_of(words->model) : 0;
    if (words->gpu_layers == 0 || (words->device && strcmp(words->device, "none") == 0))
        place_on_host(ret, need_text(".*=ROCmForge_Host"));
    else if (words->gpu_layers > 0 && (uint64_t)words->gpu_layers < layers + 1)
        place_some(ret, layers, (uint64_t)words->gpu_layers, n, backends);
    else
        place_on_gpu(ret, words, n, first, backends);
    free(first);
    return ctl->options.device ? take_device(ctl, words, n, ret) : STATUS_DONE;
}

bool run_place_fits(struct rfctl *ctl, const char *model, const char *device, bool *ret_there, uint64_t *ret_bytes)
{
    const rf_load_options options = {.size = sizeof(options), .form = "native", .device = device};
    rf_plan plan = {.size = sizeof(plan)};
    const bool known = rf_load_plan(ctl->client, model, &options, &plan) == 0;
    *ret_there = known && plan.there;
    *ret_bytes = known ? plan.bytes : 0;
    return !known || plan.there || plan.fits;
}

/* Says why it cannot be shared on a GPU. there: the name of the daemon's GPU that has the model; NULL: none has it. */
static void tell_no_room(const struct rfctl *ctl, const char *model, unsigned with_room, const char *there,
                         uint64_t bytes)
{
    char size[FORMAT_SIZE];
    const char *engine = ctl->arguments[0];
    format_bytes(size, (double)bytes);
    if (with_room == 0)
        err_line("%s (%s) does not fit on any of the daemon's GPUs, and shared weights are whole on one (-sm none)",
                 model, size);
    else
        err_line("%s (%s) %s%s, and does not fit on each of the daemon's GPUs. Which one %s uses first is not known "
                 "here: name it with -dev (%s --list-devices)",
                 model, size, there ? "is on " : "fits on one", there ? there : "", engine, engine);
}

bool run_place_has_room(struct rfctl *ctl, const struct run_words *words, const struct run_place *place)
{
    unsigned with_room = 0, without = 0;
    uint64_t bytes = 0;
    const char *there_on = NULL;
    const cJSON *device;
    cJSON_ArrayForEach (device, place->devices) {
        bool there;
        if (reply_is_host(reply_text(device, "kind")))
            continue;
        if (run_place_fits(ctl, words->model, reply_text(device, "id"), &there, &bytes))
            with_room++;
        else
            without++;
        if (there)
            there_on = reply_text(device, "id");
    }
    const bool none = with_room + without == 0;
    if (place->other_gpu || none) {
        err_line("%s has a backend for GPUs, and %s; --device host shares them in host memory, for the CPU",
                 ctl->arguments[0],
                 place->other_gpu ? "weights cannot be shared on such GPUs" : "the daemon has no GPU for weights");
        return false;
    }
    if (without == 0 || (place->named && with_room > 0))
        return true;
    tell_no_room(ctl, words->model, with_room, there_on, bytes);
    return false;
}

void run_place_free(struct run_place *place)
{
    cJSON_Delete(place->devices);
    free(place->device);
    free(place->pattern);
}
