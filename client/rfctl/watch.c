/* watch: a line for every change, until it is interrupted. */
#include "client/rfctl/format.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <time.h>

static void tell(const char *event, const cJSON *model, const char *error)
{
    char when[32] = "", bytes[FORMAT_SIZE];
    time_t now = time(NULL);
    struct tm local;
    if (localtime_r(&now, &local))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &local);
    out_line("%s  %-9s  %s (id %.0f): %s on %s as %s, %.0f leases%s%s", when, event, reply_text(model, "name"),
             reply_number(model, "id", 0), format_bytes(bytes, reply_number(model, "bytes", 0)),
             reply_text(model, "device"), reply_text(model, "form"), reply_number(model, "leases", 0),
             error[0] ? ": " : "", error);
}

static int told(void *context, const cJSON *reply, bool last)
{
    const struct rfctl *ctl = context;
    (void)last;
    if (ctl->options.json)
        return 0;
    const cJSON *model;
    cJSON_ArrayForEach (model, reply_items(reply, "models")) /* as they are when this begins */
    {
        tell(reply_text(model, "state"), model, "");
    }
    if (reply_text(reply, "event")[0])
        tell(reply_text(reply, "event"), reply_items(reply, "model"), reply_text(reply, "error"));
    return 0;
}

int command_watch(struct rfctl *ctl)
{
    return ctl_call(ctl, (struct ctl_call){
                             .method = "Watch", .flags = RF_CALL_MORE, .what = "watch", .reply = told, .context = ctl});
}
