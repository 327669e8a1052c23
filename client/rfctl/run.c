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
#include "client/rfctl/run_place.h"
#include "client/rfctl/run_words.h"
#include "proto/module_path.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* If the daemon does not answer for so long, the engine starts without it. The drivers of many GPUs take seconds to
 * start, and the daemon waits for them. */
#define DAEMON_SECONDS 30u

#define PLUGIN         "libggml-rocmforge.so"

enum { STATUS_NOT_FOUND = 127, STATUS_NOT_RUN = 126 }; /* the same values as in shells */

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
    bool there;
    uint64_t bytes;
    if (r == -EEXIST && !ctl->options.name && run_place_fits(ctl, words->model, device, &there, &bytes))
        loaded->text = need_text("%s", words->model);
    else
        status = ctl_received(&receiver, r);
    free(what);
    return status;
}

/* --- the command --- */

static int check_words(const struct rfctl *ctl, const struct run_words *words, bool bench)
{
    if (words->refused)
        err_line("%s does not work with shared weights: %s", words->refused, words->reason);
    else if (!words->model)
        err_line("%s is given no model: -m FILE is missing", ctl->arguments[0]);
    else if (bench && words->overrides)
        err_line("llama-bench would take another -ot for another test: leave yours out");
    else
        return STATUS_DONE;
    return STATUS_USAGE;
}

/* Adds our options after the user's own. llama.cpp uses the first pattern that matches a tensor, so the user's patterns
 * win. */
static char **words_with(char **words, const struct run_place *place)
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

/* The engine sets up the model and the context without memory first, to choose the size of the context and places for
 * tensors that fit (--fit). This takes up to half of a start. With our -ot it leaves the places as they are, and with
 * -c the context, so nothing is left to choose. For a draft model there is. */
static void leave_out_rehearsal(void)
{
    setenv("LLAMA_ARG_FIT", "off", 1);
}

static bool is_bench(const char *engine)
{
    const char *slash = strrchr(engine, '/');
    return strcmp(slash ? slash + 1 : engine, "llama-bench") == 0;
}

/* What is really shared is known to the plug-in alone, which compares, and says so later. */
static void tell(const struct rfctl *ctl, const struct run_words *words, const struct run_place *place,
                 const struct loaded *loaded)
{
    char *experts = words->experts ? need_text("; what %s keeps on the CPU is its own", words->experts) : NULL;
    char *start = loaded->text ? need_text("%s is to share %s", ctl->arguments[0], loaded->text)
                               : need_text("the plug-in of %s loads %s", ctl->arguments[0], words->model);
    err_line("%s%s%s%s%s%s", start, place->also ? place->also : "", experts ? experts : "",
             words->overrides ? "; your own -ot comes first" : "", words->draft ? "; the draft model is its own" : "",
             words->lock ? "; shared weights are not locked" : "");
    if (place->one_gpu)
        err_line("%s uses one GPU (-sm none): shared weights are whole on one", ctl->arguments[0]);
    if (place->device && reply_is_host(place->device))
        err_line("shared weights are not repacked: what the CPU computes with them is as with --no-repack");
    free(start);
    free(experts);
}

int command_run(struct rfctl *ctl)
{
    struct run_words words;
    const bool bench = is_bench(ctl->arguments[0]);
    ctl->replies = false; /* standard output belongs to the engine */
    run_words_read(ctl->arguments + 1, bench, &words);
    if (words.informs)
        return become(ctl, ctl->arguments);
    int status = check_words(ctl, &words, bench);
    if (status == STATUS_DONE)
        status = set_plugin();
    if (status != STATUS_DONE)
        return status;
    struct run_place place = {0};
    struct loaded loaded = {0};
    status = ctl_connect(ctl);
    if (status == STATUS_DONE) {
        ctl_hurry(ctl, DAEMON_SECONDS); /* a daemon that hangs does not keep the engine for ever */
        status = run_place_find(ctl, &words, &place);
        ctl_hurry(ctl, 0);
    }
    if (status == STATUS_DONE && place.on_gpu && !run_place_has_room(ctl, &words, &place))
        status = STATUS_REFUSED;
    if (status == STATUS_DONE && place.device)
        status = load_first(ctl, &words, place.device, &loaded);
    if (status == STATUS_DONE) {
        tell(ctl, &words, &place, &loaded);
        char **all = words_with(ctl->arguments, &place);
        if (words.fixed)
            leave_out_rehearsal();
        status = become(ctl, all);
        free(all);
    } else if (status != STATUS_USAGE)
        status = become_ordinary(ctl, status);
    free(loaded.text);
    run_place_free(&place);
    return status;
}
