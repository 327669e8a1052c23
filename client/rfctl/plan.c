/* plan: tells what load would do. */
#include "client/rfctl/format.h"
#include "client/rfctl/forms.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "llama, qwen". The caller frees it. */
static char *names_text(const cJSON *names)
{
    char *text = need_text("%s", "");
    const cJSON *name;
    cJSON_ArrayForEach (name, names) {
        char *longer = need_text("%s%s%s", text, text[0] ? ", " : "", cJSON_IsString(name) ? name->valuestring : "?");
        free(text);
        text = longer;
    }
    return text;
}

static void tell_room(const cJSON *reply, bool fits)
{
    char available[FORMAT_SIZE];
    const cJSON *evicts = reply_items(reply, "evicts");
    char *names = names_text(evicts);
    int n = cJSON_GetArraySize(evicts);
    out_line("%s: %s available%s%s%s", fits ? "fits" : "does not fit",
             format_bytes(available, reply_number(reply, "available", 0)), n == 0 ? "" : "; evicts ", names,
             n == 0 ? "" : ", which nobody uses");
    free(names);
}

/* A sentence for an error that load would be answered with, other than that there is not enough memory. */
static const char *why(const char *error)
{
    if (strcmp(error, "io.rocmforge.NameInUse") == 0)
        return "another model has this name; take another one with --name, or, if that model is yours, --replace";
    if (strcmp(error, "io.rocmforge.ModelBusy") == 0)
        return "it is being unloaded, and somebody still has it mapped";
    if (strcmp(error, "io.rocmforge.PermissionDenied") == 0)
        return "only who owns the file makes its model public";
    if (strcmp(error, "io.rocmforge.LimitExceeded") == 0)
        return "a limit is reached: of its names, of its users, or of what you may load; 'rfctl load' says which";
    return error;
}

static int told(void *context, const cJSON *reply, bool last)
{
    const struct rfctl *ctl = context;
    (void)last;
    if (ctl->options.json)
        return 0;
    char bytes[FORMAT_SIZE], size[FORMAT_SIZE], took[FORMAT_SIZE];
    const cJSON *model = reply_items(reply, "model");
    bool fits = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(reply, "fits"));
    double seconds = reply_number(reply, "seconds", -1);
    char *form = form_text(reply);
    out_line("%s: %s on %s as %s, from %s, %.0f tensors", ctl->arguments[0],
             format_bytes(bytes, reply_number(reply, "bytes", 0)), reply_text(reply, "device"), form,
             format_bytes(size, reply_number(reply, "size", 0)), reply_number(reply, "tensors", 0));
    free(form);
    if (model) {
        out_line("there already: %s is %s", reply_text(model, "name"), reply_text(model, "state"));
        return 0;
    }
    const char *error = reply_text(reply, "error");
    tell_room(reply, fits);
    if (error[0] && strcmp(error, "io.rocmforge.OutOfDeviceMemory") != 0)
        out_line("cannot be loaded: %s", why(error));
    else if (fits && seconds >= 0)
        out_line("takes about %s, at the rate of the loads so far", format_seconds(took, seconds));
    return 0;
}

int command_plan(struct rfctl *ctl)
{
    int status = ctl_connect(ctl);
    if (status != STATUS_DONE)
        return status;
    char *what = need_text("plan %s", ctl->arguments[0]);
    struct form_words words;
    form_words_read(&ctl->options.as, &words);
    struct ctl_receiver receiver = {.ctl = ctl, .what = what, .reply = told, .context = ctl};
    rf_plan plan = {.size = sizeof(plan)};
    rf_load_options options = form_load_options(&ctl->options, &words);
    options.reply = ctl_receive;
    options.context = &receiver;
    status = ctl_received(&receiver, rf_load_plan_files(ctl->client, (const char *const *)ctl->arguments,
                                                        ctl->n_arguments, &options, &plan));
    form_words_clear(&words);
    free(what);
    return status == STATUS_DONE && (!plan.fits || plan.error) ? STATUS_REFUSED : status;
}
