/* watch: prints a line for every change of a model, until it is interrupted. */
#include "client/rfctl/format.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void tell(const char *event, const cJSON *model, const char *error)
{
    char when[32] = "", bytes[FORMAT_SIZE], place[32] = "";
    double leases = reply_number(model, "leases", 0);
    double queued = reply_number(model, "position", 0);
    if (queued > 0)
        snprintf(place, sizeof(place), " %.0f", queued);
    time_t now = time(NULL);
    struct tm local;
    if (localtime_r(&now, &local))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &local);
    out_line("%s  %s%s%*s  %s (id %.0f): %s on %s as %s, %.0f lease%s%s%s", when, event, place,
             (int)(strlen(event) + strlen(place) < 9 ? 9 - strlen(event) - strlen(place) : 0), "",
             reply_text(model, "name"), reply_number(model, "id", 0),
             format_bytes(bytes, reply_number(model, "bytes", 0)), reply_text(model, "device"),
             reply_text(model, reply_text(model, "source")[0] ? "source" : "form"), leases, leases == 1 ? "" : "s",
             error[0] ? ": " : "", error);
}

static int told(void *context, const cJSON *reply, bool last)
{
    const struct rfctl *ctl = context;
    (void)last;
    if (ctl->options.json)
        return 0;
    const cJSON *model;
    cJSON_ArrayForEach (model, reply_items(reply, "models")) /* in the first reply: the models that there are */
    {
        tell(reply_text(model, "state"), model, "");
    }
    if (reply_text(reply, "event")[0])
        tell(reply_text(reply, "event"), reply_items(reply, "model"), reply_text(reply, "error"));
    return 0;
}

/* Ends the program when the reader of its output is gone. Without this it would notice only at the next change, when it
 * writes. This runs on a second thread, because the first one waits inside the library. */
static void *end_with_reader(void *unused)
{
    (void)unused;
    struct pollfd output = {.fd = STDOUT_FILENO}; /* poll() reports errors even if no events are requested */
    while (poll(&output, 1, -1) < 0 && errno == EINTR)
        ;
    if (output.revents & (POLLERR | POLLHUP))
        _exit(STATUS_REFUSED);
    return NULL;
}

int command_watch(struct rfctl *ctl)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_with_reader, NULL) == 0)
        pthread_detach(thread);
    return ctl_call(ctl, (struct ctl_call){
                             .method = "Watch", .flags = RF_CALL_MORE, .what = "watch", .reply = told, .context = ctl});
}
