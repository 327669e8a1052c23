/* unload, cancel and verify: what is done with a model by its name. */
#include "client/rfctl/fields.h"
#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/progress.h"
#include "client/rfctl/rfctl.h"

#include <stdlib.h>

#define MISMATCHES_MAX 64 /* the daemon tells no more */

/* Calls a method that takes a name and replies with nothing. */
static int by_name(struct rfctl *ctl, const char *method, const char *verb, const char *done)
{
    const char *name = ctl->arguments[0];
    char *what = need_text("%s %s", verb, name);
    int status = ctl_call(ctl, (struct ctl_call){.method = method, .parameters = ctl_name("name", name), .what = what});
    if (status == STATUS_DONE && !ctl->options.json)
        out_line("%s %s", done, name);
    free(what);
    return status;
}

int command_unload(struct rfctl *ctl)
{
    return by_name(ctl, "Unload", "unload", "unloaded");
}

int command_cancel(struct rfctl *ctl)
{
    return by_name(ctl, "Cancel", "cancel", "cancelled");
}

struct verification {
    const char *name;
    bool json;
    int mismatches;
};

static int told(void *context, const cJSON *reply, bool last)
{
    struct verification *verification = context;
    const cJSON *mismatches = field_items(reply, "mismatches"), *mismatch;
    if (!last) {
        if (!verification->json && field_items(reply, "progress"))
            progress_show(field_items(reply, "progress"));
        return 0;
    }
    progress_erase();
    verification->mismatches = cJSON_GetArraySize(mismatches);
    if (verification->json)
        return 0;
    char bytes[FORMAT_SIZE];
    if (verification->mismatches == 0)
        out_line("verified %s: %.0f tensors, %s, every bit as in the file", verification->name,
                 field_number(reply, "tensors", 0), format_bytes(bytes, field_number(reply, "bytes", 0)));
    cJSON_ArrayForEach (mismatch, mismatches) {
        out_line("%s differs from byte %.0f on", field_text(mismatch, "tensor"), field_number(mismatch, "offset", 0));
    }
    return 0;
}

int command_verify(struct rfctl *ctl)
{
    struct verification verification = {.name = ctl->arguments[0], .json = ctl->options.json};
    char *what = need_text("verify %s", verification.name);
    int status = ctl_call(ctl, (struct ctl_call){
                                   .method = "Verify",
                                   .parameters = ctl_name("name", verification.name),
                                   .flags = RF_CALL_MORE,
                                   .what = what,
                                   .reply = told,
                                   .context = &verification,
                               });
    free(what);
    if (status != STATUS_DONE || verification.mismatches == 0)
        return status;
    err_line("%s is not what its file says: %d%s tensor%s differ%s", verification.name, verification.mismatches,
             verification.mismatches >= MISMATCHES_MAX ? " or more" : "", verification.mismatches == 1 ? "" : "s",
             verification.mismatches == 1 ? "s" : "");
    return STATUS_REFUSED;
}
