/* load: loads a file through the library, which passes the open file to the daemon, and shows the progress. */
#include "client/rfctl/duration.h"
#include "client/rfctl/format.h"
#include "client/rfctl/forms.h"
#include "client/rfctl/interrupt.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/names.h"
#include "client/rfctl/output.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct load {
    const struct options *options;
    const char *path;
    struct timespec began;
    FILE *trace;     /* NULL: no trace was asked for */
    int trace_error; /* the error when it was written, a negative errno; 0: none */
    bool joined;     /* there was progress, so the model was not resident at once */
};

static double seconds_since(const struct timespec *then)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - then->tv_sec) + (double)(now.tv_nsec - then->tv_nsec) / 1e9;
}

/* "read 1.28 ms, copy 28 ms". Leaves out phases that took no time. The caller frees it. */
static char *phases_text(const cJSON *phases, const char *const *names)
{
    char *text = need_text("%s", "");
    for (; *names; names++) {
        char took[FORMAT_SIZE];
        double seconds = reply_number(phases, *names, 0) / 1e6;
        if (!(seconds > 0))
            continue;
        char *longer = need_text("%s%s%s %s", text, text[0] ? ", " : "", *names, format_seconds(took, seconds));
        free(text);
        text = longer;
    }
    return text;
}

/* Parsing and allocating come one after the other. The other phases run at the same time, on several threads, and each
 * is a sum over the threads. So the two kinds are printed separately. */
static void tell_phases(const cJSON *phases, double bytes)
{
    static const char *const one_by_one[] = {"parse", "allocate", NULL};
    static const char *const side_by_side[] = {"read", "dequantise", "copy", "kernel", NULL};
    char *first = phases_text(phases, one_by_one), *then = phases_text(phases, side_by_side);
    if (first[0] || then[0])
        out_line("  %s%s%s%s", first, first[0] && then[0] ? "; " : "", then[0] ? "over all workers: " : "", then);
    free(first);
    free(then);
    double link = reply_number(phases, "link", 0), seconds = reply_number(phases, "total", 0) / 1e6;
    char ceiling[FORMAT_SIZE];
    if (link > 0 && seconds > 0)
        out_line("  %.2f of the link's %s", bytes / seconds / link, format_rate(ceiling, link));
}

/* Tells if the CPU decoded blocks that a GPU should have decoded. */
static void tell_dequant(const struct load *load, const cJSON *phases, const char *device)
{
    const char *asked = load->options->dequant;
    if (!reply_is_host(device) && (!asked || strcmp(asked, "cpu") != 0) && reply_number(phases, "dequantise", 0) > 0)
        out_line("  dequantised by the CPU: %s has no kernels for it, see rfctl --json devices", device);
}

static void tell_loaded(const struct load *load, const cJSON *model, const cJSON *phases)
{
    char bytes[FORMAT_SIZE], size[FORMAT_SIZE], took[FORMAT_SIZE], rate[FORMAT_SIZE];
    const char *name = reply_text(model, "name"), *device = reply_text(model, "device");
    double file_bytes = reply_number(model, "size", 0);
    double seconds = phases ? reply_number(phases, "total", 0) / 1e6 : seconds_since(&load->began);
    format_bytes(bytes, reply_number(model, "bytes", 0));
    format_bytes(size, file_bytes);
    if (!phases && !load->joined) {
        const char *also = load->options->name && strcmp(load->options->name, name) != 0 ? load->options->name : NULL;
        /* Which names it has got from an older version, the reply does not tell. */
        char *others = load->options->replace && !load->options->name ? names_text(model) : need_text("%s", "");
        out_line("%s is resident already, as %s%s%s%s%s: %s on %s", load->path, name, also ? ", now also " : "",
                 also ? also : "", others[0] ? ", also " : "", others, bytes, device);
        free(others);
        return;
    }
    bool same = strcmp(bytes, size) == 0;
    out_line("loaded %s: %s on %s%s%s in %s (%s)", name, bytes, device, same ? "" : " from ", same ? "" : size,
             format_seconds(took, seconds), format_rate(rate, seconds > 0 ? file_bytes / seconds : 0));
    if (!phases)
        return;
    tell_phases(phases, file_bytes);
    tell_dequant(load, phases, device);
}

/* Another user's model that the load joined stays as it is. Says so if it is not what was asked for. */
static void tell_unchanged(const struct options *options, const cJSON *model)
{
    const char *name = reply_text(model, "name");
    double ttl = reply_number(model, "ttl", -1);
    char text[DURATION_SIZE];
    if (options->pin && !cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "pinned")))
        err_line("%s was not pinned: another user loaded it", name);
    if (options->ttl > 0 && ttl < 0)
        err_line("%s has no time to live, as before: another user loaded it", name);
    else if (options->ttl > 0 && ttl != (double)options->ttl)
        err_line("%s keeps its time to live of %s: another user loaded it", name, duration_format(text, ttl));
}

static int told(void *context, const cJSON *reply, bool last)
{
    struct load *load = context;
    const cJSON *model = reply_items(reply, "model"), *progress = reply_items(reply, "progress");
    if (!last) {
        load->joined = true;
        if (!load->options->json && progress)
            progress_show(progress);
        return 0;
    }
    progress_erase();
    if (load->trace) /* without spans, if the model was resident already */
        load->trace_error = trace_write(load->trace, reply_items(reply, "trace"));
    double overflows = reply_number(model, "overflows", 0);
    if (overflows > 0)
        err_line("%.0f values of %s are too large for f16 and became infinite", overflows, reply_text(model, "name"));
    tell_unchanged(load->options, model);
    if (load->options->json)
        return 0;
    if (strcmp(reply_text(model, "state"), "resident") != 0) {
        char bytes[FORMAT_SIZE];
        out_line("loading %s: %s on %s", reply_text(model, "name"),
                 format_bytes(bytes, reply_number(model, "bytes", 0)), reply_text(model, "device"));
    } else
        tell_loaded(load, model, reply_items(reply, "phases"));
    return 0;
}

/* Closes the trace. Returns the exit status of the command; `status` is what it was before. */
static int close_trace(const struct rfctl *ctl, struct load *load, int status)
{
    if (load->trace && fclose(load->trace) != 0 && load->trace_error == 0)
        load->trace_error = -errno;
    if (status == STATUS_DONE && load->trace_error < 0)
        return ctl_refuse(ctl, "cannot write the trace: %s", strerror(-load->trace_error));
    return status;
}

int command_load(struct rfctl *ctl)
{
    struct load load = {.options = &ctl->options, .path = ctl->arguments[0]};
    if (ctl->options.trace && !(load.trace = fopen(ctl->options.trace, "we")))
        return ctl_refuse(ctl, "cannot write %s: %s", ctl->options.trace, strerror(errno));
    int status = ctl_connect(ctl);
    if (status != STATUS_DONE)
        return close_trace(ctl, &load, status);
    char *what = need_text("load %s", load.path);
    struct form_words words;
    form_words_read(&ctl->options.as, &words);
    struct ctl_receiver receiver = {.ctl = ctl, .what = what, .reply = told, .context = &load};
    rf_load_options options = form_load_options(&ctl->options, &words);
    options.no_wait = ctl->options.no_wait;
    options.pin = ctl->options.pin;
    options.ttl_seconds = ctl->options.ttl;
    options.deadline_seconds = (double)ctl->options.deadline;
    options.wait_for_memory_seconds = (double)ctl->options.wait_for_memory;
    options.trace = load.trace != NULL;
    options.reply = ctl_receive;
    options.context = &receiver;
    clock_gettime(CLOCK_MONOTONIC, &load.began);
    if (!options.no_wait)
        interrupt_say("interrupted: the load is cancelled, unless others want it too");
    status = ctl_received(
        &receiver, rf_load_files(ctl->client, (const char *const *)ctl->arguments, ctl->n_arguments, &options, NULL));
    interrupt_say(NULL);
    form_words_clear(&words);
    free(what);
    return close_trace(ctl, &load, status);
}
