/* run: starts a program of llama.cpp that uses resident weights. rfctl loads the model first and shows the progress.
 * Then it replaces itself with the program (exec), so the program's exit status is the status of the command. The
 * plug-in in the program attaches to the weights, and checks everything again. */
#include "client/rfctl/format.h"
#include "client/rfctl/interrupt.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/run_words.h"
#include "daemon/gguf/gguf.h"
#include "proto/module_path.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLUGIN "libggml-rocmforge.so"

enum { STATUS_NOT_FOUND = 127, STATUS_NOT_RUN = 126 }; /* the same values as in shells */

/* Where the engine's weights should be. */
struct place {
    char *device;     /* the daemon's name of it; NULL: the plug-in chooses, because it sees the engine's GPUs; owned */
    char *pattern;    /* of -ot; owned */
    const char *also; /* a further text for the message to the user; NULL: none */
    bool one_gpu;     /* the engine gets an option to use only one GPU */
};

/* --- the engine --- */

static bool strict(void)
{
    const char *value = getenv("ROCMFORGE_STRICT");
    return value && value[0] && strcmp(value, "0") != 0;
}

/* Replaces this process with the engine. Returns only if the engine cannot be started, and says why. */
static int become(struct rfctl *ctl, char **words)
{
    if (ctl->options.socket)
        setenv("ROCMFORGE_SOCKET", ctl->options.socket, 1);
    progress_erase();
    signal(SIGPIPE, SIG_DFL); /* a signal that is ignored stays ignored after exec */
    execvp(words[0], words);
    int error = errno;
    err_line("cannot run %s: %s", words[0], strerror(error));
    return error == ENOENT ? STATUS_NOT_FOUND : STATUS_NOT_RUN;
}

/* Like become(), but without shared weights, and tells the user so. With ROCMFORGE_STRICT the engine is not started. */
static int become_ordinary(struct rfctl *ctl, int status)
{
    if (strict()) {
        err_line("ROCMFORGE_STRICT is set: %s is not run", ctl->arguments[0]);
        return status;
    }
    err_line("%s loads the model in the ordinary way: its weights are its own", ctl->arguments[0]);
    unsetenv("GGML_BACKEND_PATH");
    return become(ctl, ctl->arguments);
}

static int set_plugin(void)
{
    char path[PATH_MAX];
    const char *set = getenv("GGML_BACKEND_PATH");
    if (set && set[0] && !strstr(set, PLUGIN)) {
        err_line("GGML_BACKEND_PATH is set to %s, and an engine loads only one", set);
        return STATUS_USAGE;
    }
    if (set && set[0])
        return STATUS_DONE;
    /* The plug-in is installed in the folder of the modules for devices. In a build tree it is in another folder, and
     * ROCMFORGE_MODULE_DIR lists both. */
    if (module_file_find(ROCMFORGE_MODULE_DIR, PLUGIN, path) < 0) {
        err_line("there is no " PLUGIN " among the modules: it was not installed");
        return STATUS_REFUSED;
    }
    setenv("GGML_BACKEND_PATH", path, 1);
    return STATUS_DONE;
}

/* Finds a program as execvp() does. */
static bool find_program(const char *name, char path[static PATH_MAX])
{
    const char *folders = strchr(name, '/') ? NULL : getenv("PATH");
    if (!folders)
        return realpath(name, path) != NULL;
    char candidate[PATH_MAX];
    return path_list_find(folders, name, X_OK, candidate) == 0 && realpath(candidate, path) != NULL;
}

/* Whether a backend for GPUs is in the program's folder. If it is in another folder, this is false. Then the plug-in
 * loads the model, because it sees which GPUs the engine has. */
static bool has_gpu_backend(const char *name)
{
    static const char *const backends[] = {"libggml-cuda.so", "libggml-hip.so"};
    char path[PATH_MAX], backend[PATH_MAX];
    if (!find_program(name, path))
        return false;
    *strrchr(path, '/') = '\0';
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        int n = snprintf(backend, sizeof(backend), "%s/%s", path, backends[i]);
        if (n > 0 && n < PATH_MAX && access(backend, R_OK) == 0)
            return true;
    }
    return false;
}

/* --- where the weights should be --- */

/* The number of layers of the model; 0: the file does not say it. */
static uint64_t layers_of(const char *path)
{
    struct gguf *file = NULL;
    struct gguf_fault fault = {0};
    struct stat status;
    struct gguf_string architecture;
    uint64_t layers = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd >= 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
        gguf_read(fd, (uint64_t)status.st_size, &file, &fault) == 0 &&
        gguf_kv_string(gguf_find(file, "general.architecture"), &architecture) == 0) {
        char *key = need_text("%.*s.block_count", (int)architecture.size, architecture.bytes);
        const struct gguf_kv *count = gguf_find(file, key);
        if (!count || gguf_kv_u64(count, &layers) < 0)
            layers = 0;
        free(key);
    }
    if (fd >= 0)
        close(fd);
    gguf_free(file);
    return layers;
}

/* A pattern for layers 0 to n - 1, and for the embeddings, which llama.cpp always keeps on the CPU. */
static char *pattern_of_first(uint64_t n)
{
    char *numbers = need_text("%s", "");
    for (uint64_t i = 0; i < n; i++) {
        char *longer = need_text("%s%s%llu", numbers, i > 0 ? "|" : "", (unsigned long long)i);
        free(numbers);
        numbers = longer;
    }
    char *pattern = need_text("^(token_embd|blk\\.(%s))\\.=ROCmForge_Host", numbers);
    free(numbers);
    return pattern;
}

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

static void place_on_host(struct place *place, char *pattern)
{
    place->device = need_text("host");
    place->pattern = pattern;
}

/* If there are several GPUs, only the engine knows which one it uses first. Then no device is chosen here, and the
 * plug-in loads the model. */
static void place_on_gpu(struct place *place, const struct run_words *words, unsigned n, const char *first,
                         bool has_backend)
{
    place->pattern = need_text(".*=ROCmForge");
    if (n == 0)
        place->device = need_text("host");
    else if (n == 1 && has_backend)
        place->device = need_text("%s", first);
    place->one_gpu = n > 1 && has_backend && !words->split && !words->device;
}

static int choose_place(struct rfctl *ctl, const struct run_words *words, struct place *ret)
{
    cJSON *reply = NULL;
    int status = ctl_ask(ctl, "Devices", NULL, "list devices", &reply);
    if (status != STATUS_DONE)
        return status;
    char *first = NULL;
    unsigned n = count_gpus(reply_items(reply, "devices"), &first);
    cJSON_Delete(reply);
    uint64_t layers = words->gpu_layers > 0 ? layers_of(words->model) : 0;
    if (words->gpu_layers == 0 || (words->device && strcmp(words->device, "none") == 0))
        place_on_host(ret, need_text(".*=ROCmForge_Host"));
    else if (words->gpu_layers > 0 && (uint64_t)words->gpu_layers < layers + 1) {
        place_on_host(ret, pattern_of_first(layers + 1 - (uint64_t)words->gpu_layers));
        ret->also = "; layers on the GPU are its own";
    } else
        place_on_gpu(ret, words, n, first, has_gpu_backend(ctl->arguments[0]));
    free(first);
    if (ctl->options.device) {
        free(ret->device);
        ret->device = need_text("%s", ctl->options.device);
    }
    return STATUS_DONE;
}

/* --- the model --- */

struct loaded {
    char *text; /* "x (253 MB on host)"; owned */
};

static int told(void *context, const cJSON *reply, bool last)
{
    struct loaded *loaded = context;
    const cJSON *model = reply_items(reply, "model"), *progress = reply_items(reply, "progress");
    char bytes[FORMAT_SIZE];
    if (!last && progress)
        progress_show(progress);
    if (last)
        loaded->text = need_text("%s (%s on %s)", reply_text(model, "name"),
                                 format_bytes(bytes, reply_number(model, "bytes", 0)), reply_text(model, "device"));
    return 0;
}

/* If the name is taken, for example by the same file in another form, this is no error: the plug-in finds another
 * name. */
static int load_first(struct rfctl *ctl, const struct run_words *words, const char *device, struct loaded *loaded)
{
    char *what = need_text("load %s", words->model);
    struct ctl_receiver receiver = {.ctl = ctl, .what = what, .reply = told, .context = loaded};
    const rf_load_options options = {
        .size = sizeof(options),
        .name = ctl->options.name,
        .form = "native",
        .device = device,
        .pin = ctl->options.pin,
        .private_ = ctl->options.private,
        .ttl_seconds = ctl->options.ttl,
        .reply = ctl_receive,
        .context = &receiver,
    };
    interrupt_say("interrupted: the load is cancelled, unless others want it too");
    int r = rf_load(ctl->client, words->model, &options, NULL), status = STATUS_DONE;
    progress_erase();
    interrupt_say(NULL);
    if (r == -EEXIST && !ctl->options.name)
        loaded->text = need_text("%s", words->model);
    else
        status = ctl_received(&receiver, r);
    free(what);
    return status;
}

/* --- the command --- */

static int check_words(const struct rfctl *ctl, const struct run_words *words)
{
    if (words->refused) {
        err_line("%s cannot be had with shared weights: %s", words->refused, words->reason);
        return STATUS_USAGE;
    }
    if (words->elsewhere && !words->model) {
        err_line("%s names no file that is here: use -m with the file that was downloaded", words->elsewhere);
        return STATUS_USAGE;
    }
    if (!words->model) {
        err_line("%s is given no model: -m FILE is missing", ctl->arguments[0]);
        return STATUS_USAGE;
    }
    if (words->split && strcmp(words->split, "layer") == 0) {
        err_line("-sm layer cannot be had with shared weights: a resident model is whole on one GPU; "
                 "leave it out, or use -sm none");
        return STATUS_USAGE;
    }
    return STATUS_DONE;
}

/* Adds our options after the user's own. llama.cpp uses the first pattern that matches a tensor, so the user's patterns
 * win. */
static char **words_with(char **words, const struct place *place)
{
    size_t n = 0;
    while (words[n])
        n++;
    char **all = need_memory((n + 5) * sizeof(*all));
    memcpy(all, words, n * sizeof(*all));
    static char override[] = "-ot", split[] = "-sm", none[] = "none";
    all[n++] = override;
    all[n++] = place->pattern;
    if (place->one_gpu) {
        all[n++] = split;
        all[n++] = none;
    }
    return all;
}

static bool is_bench(const char *engine)
{
    const char *slash = strrchr(engine, '/');
    return strcmp(slash ? slash + 1 : engine, "llama-bench") == 0;
}

static void tell(const struct rfctl *ctl, const struct run_words *words, const struct place *place,
                 const struct loaded *loaded)
{
    err_line("%s shares %s%s%s%s%s", ctl->arguments[0], loaded->text ? loaded->text : words->model,
             place->also ? place->also : "", words->overrides ? "; your own -ot comes first" : "",
             words->draft ? "; the draft model is its own" : "", words->lock ? "; they are not locked" : "");
}

int command_run(struct rfctl *ctl)
{
    struct run_words words;
    ctl->replies = false; /* standard output belongs to the engine */
    run_words_read(ctl->arguments + 1, &words);
    if (words.informs)
        return become(ctl, ctl->arguments);
    int status = check_words(ctl, &words);
    if (status == STATUS_DONE && is_bench(ctl->arguments[0]) && words.overrides) {
        err_line("llama-bench would take another -ot for another test: leave yours out");
        status = STATUS_USAGE;
    }
    status = status == STATUS_DONE ? set_plugin() : status;
    if (status != STATUS_DONE)
        return status;
    struct place place = {0};
    struct loaded loaded = {0};
    status = ctl_connect(ctl);
    if (status == STATUS_DONE)
        status = choose_place(ctl, &words, &place);
    if (status == STATUS_DONE && place.device)
        status = load_first(ctl, &words, place.device, &loaded);
    if (status == STATUS_DONE) {
        tell(ctl, &words, &place, &loaded);
        char **all = words_with(ctl->arguments, &place);
        status = become(ctl, all);
        free(all);
    } else
        status = become_ordinary(ctl, status);
    free(loaded.text);
    free(place.pattern);
    free(place.device);
    return status;
}
