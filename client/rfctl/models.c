/* unload, pin, unpin, ttl, cancel and verify: the commands that change or check a model. */
#include "client/rfctl/duration.h"
#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/names.h"
#include "client/rfctl/output.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MISMATCHES_MAX 64 /* the daemon lists no more */

/* Calls a method that takes a name and has an empty reply, and prints "`done` NAME". `busy`: see refusal.h. */
static int by_name(struct rfctl *ctl, const char *method, const char *verb, const char *done, const char *busy)
{
    const char *name = ctl->arguments[0];
    char *what = need_text("%s %s", verb, name);
    int status = ctl_call(
        ctl, (struct ctl_call){.method = method, .parameters = ctl_model(ctl), .what = what, .words = {.busy = busy}});
    if (status == STATUS_DONE && !ctl->options.json)
        out_line("%s %s", done, name);
    free(what);
    return status;
}

static int keep_model(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    (void)continues;
    (void)fds;
    (void)n_fds;
    cJSON *reply = cJSON_Parse(parameters);
    *(cJSON **)context = cJSON_DetachItemFromObjectCaseSensitive(reply, "model");
    cJSON_Delete(reply);
    return 0;
}

/* The model that the daemon means by this name; the caller deletes it. Several models may have the name, and it may be
 * NAME#ID, so the daemon decides; but it shows no model that is still being loaded: such a model is looked for in its
 * list. NULL: there is none, or List failed, which was printed. */
static cJSON *look_up(struct rfctl *ctl, const char *name)
{
    cJSON *reply = NULL, *found = NULL;
    const cJSON *model;
    cJSON *parameters = ctl_name("name", name);
    char *text = cJSON_PrintUnformatted(parameters);
    cJSON_Delete(parameters);
    const int r = text ? rf_call(ctl->client, "Show", text, 0, NULL, 0, keep_model, &found) : -ENOMEM;
    cJSON_free(text);
    if (r == 0 && found)
        return found;
    if (ctl_ask(ctl, "List", NULL, "list models", &reply) != STATUS_DONE)
        return NULL;
    cJSON_ArrayForEach (model, reply_items(reply, "models")) {
        if (!found && names_have(model, name))
            found = cJSON_Duplicate(model, true);
    }
    cJSON_Delete(reply);
    return found;
}

/* The number of leases of a model that drains; -1: it does not drain, or is gone. */
static double leases_left(struct rfctl *ctl, const char *name)
{
    cJSON *model = look_up(ctl, name);
    double leases = strcmp(reply_text(model, "state"), "draining") == 0 ? reply_number(model, "leases", -1) : -1;
    cJSON_Delete(model);
    return leases;
}

/* Calls Unload. *ret is the reply, which the caller deletes. Returns the exit status. */
static int ask_to_unload(struct rfctl *ctl, const char *name, cJSON **ret)
{
    cJSON *parameters = ctl_model(ctl);
    if (ctl->options.force)
        cJSON_AddTrueToObject(parameters, "force");
    char *what = need_text("unload %s", name);
    char *loading = need_text("'rfctl cancel %s' stops the load", name);
    char *leased = need_text("'rfctl unload --force %s' frees it when they have detached", name);
    int status = ctl_ask_with(ctl, "Unload", parameters, what,
                              &(struct refusal_words){.loading = loading, .leased = leased}, ret);
    free(what);
    free(loading);
    free(leased);
    return status;
}

int command_unload(struct rfctl *ctl)
{
    const char *name = ctl->arguments[0];
    cJSON *reply = NULL;
    int status = ask_to_unload(ctl, name, &reply);
    if (status != STATUS_DONE || ctl->options.json) {
        cJSON_Delete(reply);
        return status;
    }
    double leases = strcmp(reply_text(reply, "state"), "draining") == 0 ? leases_left(ctl, name) : -1;
    if (leases >= 0)
        out_line("draining %s: %.0f lease%s", name, leases, leases == 1 ? "" : "s");
    else if (strcmp(reply_text(reply, "state"), "named") == 0)
        out_line("%s is no name of the model any more; it has others", name);
    else
        out_line("unloaded %s", name);
    cJSON_Delete(reply);
    return status;
}

int command_pin(struct rfctl *ctl)
{
    return by_name(ctl, "Pin", "pin", "pinned", NULL);
}

int command_unpin(struct rfctl *ctl)
{
    return by_name(ctl, "Unpin", "unpin", "unpinned", NULL);
}

/* Prints what the new time to live means. A pinned model stays, whatever its time to live is. */
static void tell_ttl(struct rfctl *ctl, const char *name, bool never, double seconds)
{
    if (never) {
        out_line("%s stays until it is unloaded", name);
        return;
    }
    cJSON *model = look_up(ctl, name);
    bool pinned = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "pinned"));
    char text[TTL_SIZE];
    out_line("%s is %s %s", name, pinned ? "pinned, so it stays; when it is unpinned, it is unloaded" : "unloaded",
             ttl_text(text, seconds));
    cJSON_Delete(model);
}

int command_ttl(struct rfctl *ctl)
{
    const char *name = ctl->arguments[0], *duration = ctl->arguments[1];
    bool never = strcmp(duration, "never") == 0;
    uint64_t seconds = 0;
    if (!never && duration_parse(duration, &seconds) < 0) {
        err_line("'%s' is no DURATION: 90, 90s, 10m, 2h, 1d, or never", duration);
        return STATUS_USAGE;
    }
    cJSON *parameters = ctl_name("name", name);
    cJSON_AddItemToObject(parameters, "ttl", never ? cJSON_CreateNull() : cJSON_CreateNumber((double)seconds));
    char *what = need_text("set the time to live of %s", name);
    int status = ctl_call(ctl, (struct ctl_call){.method = "SetTtl", .parameters = parameters, .what = what});
    free(what);
    if (status == STATUS_DONE && !ctl->options.json)
        tell_ttl(ctl, name, never, (double)seconds);
    return status;
}

int command_cancel(struct rfctl *ctl)
{
    return by_name(ctl, "Cancel", "cancel", "cancelled", "it is not being loaded");
}

struct verification {
    const char *name;
    bool json;
    int mismatches;
};

static int told(void *context, const cJSON *reply, bool last)
{
    struct verification *verification = context;
    const cJSON *mismatches = reply_items(reply, "mismatches"), *mismatch;
    if (!last) {
        if (!verification->json && reply_items(reply, "progress"))
            progress_show(reply_items(reply, "progress"));
        return 0;
    }
    progress_erase();
    verification->mismatches = cJSON_GetArraySize(mismatches);
    if (verification->json)
        return 0;
    char bytes[FORMAT_SIZE];
    const bool deleted = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(reply, "deleted"));
    const bool replaced = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(reply, "replaced"));
    if (verification->mismatches == 0)
        out_line("verified %s: %.0f tensors, %s, every bit as in the file%s", verification->name,
                 reply_number(reply, "tensors", 0), format_bytes(bytes, reply_number(reply, "bytes", 0)),
                 deleted    ? " that was loaded; it was deleted since"
                 : replaced ? " that was loaded; its path leads to another file now"
                            : "");
    cJSON_ArrayForEach (mismatch, mismatches) {
        out_line("%s differs from byte %.0f on", reply_text(mismatch, "tensor"), reply_number(mismatch, "offset", 0));
    }
    return 0;
}

int command_verify(struct rfctl *ctl)
{
    struct verification verification = {.name = ctl->arguments[0], .json = ctl->options.json};
    char *what = need_text("verify %s", verification.name);
    int status = ctl_call(ctl, (struct ctl_call){
                                   .method = "Verify",
                                   .parameters = ctl_model(ctl),
                                   .flags = RF_CALL_MORE,
                                   .what = what,
                                   .reply = told,
                                   .context = &verification,
                                   .words = {.loading = "'rfctl watch' tells when it is resident"},
                               });
    free(what);
    if (status != STATUS_DONE || verification.mismatches == 0)
        return status;
    err_line("%s is not what its file says: %d%s tensor%s differ%s; unload it, and load it again", verification.name,
             verification.mismatches, verification.mismatches >= MISMATCHES_MAX ? " or more" : "",
             verification.mismatches == 1 ? "" : "s", verification.mismatches == 1 ? "s" : "");
    return STATUS_REFUSED;
}
