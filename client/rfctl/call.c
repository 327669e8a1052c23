/* Calls to the daemon, and what is said when they fail. */
#include "client/rfctl/output.h"
#include "client/rfctl/rfctl.h"

#include <errno.h>
#include <stdlib.h>

int ctl_connect(struct rfctl *ctl)
{
    if (ctl->client || rf_connect(ctl->options.socket, &ctl->client) == 0)
        return STATUS_DONE;
    err_line("no daemon: %s", rf_error_message(NULL));
    return STATUS_NO_DAEMON;
}

int ctl_fail(const struct rfctl *ctl, int error, const char *what)
{
    err_line("cannot %s: %s", what, rf_error_message(ctl->client));
    if (rf_error_name(ctl->client))
        return STATUS_REFUSED;
    return error == -ECONNRESET || error == -EPIPE ? STATUS_NO_DAEMON : STATUS_REFUSED;
}

struct receiver {
    const struct ctl_call *call;
    bool json;
    int output; /* the error of standard output that ended the call */
};

static int receive(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct receiver *receiver = context;
    (void)fds;
    (void)n_fds;
    if (receiver->json) {
        out_json(parameters);
        receiver->output = out_flush();
        if (receiver->output < 0)
            return receiver->output;
    }
    if (!receiver->call->reply)
        return 0;
    cJSON *reply = cJSON_Parse(parameters);
    if (!reply)
        return -EPROTO;
    int r = receiver->call->reply(receiver->call->context, reply, !continues);
    cJSON_Delete(reply);
    if (r == 0)
        receiver->output = r = out_flush();
    return r;
}

int ctl_call(struct rfctl *ctl, struct ctl_call call)
{
    int status = ctl_connect(ctl);
    char *parameters = call.parameters ? cJSON_PrintUnformatted(call.parameters) : NULL;
    if (status == STATUS_DONE) {
        struct receiver receiver = {.call = &call, .json = ctl->options.json};
        int r = rf_call(ctl->client, call.method, parameters, call.flags, call.fds, call.n_fds, receive, &receiver);
        if (receiver.output < 0)
            status = STATUS_REFUSED; /* main() says what became of the output */
        else if (r < 0)
            status = ctl_fail(ctl, r, call.what);
    }
    cJSON_free(parameters);
    cJSON_Delete(call.parameters);
    return status;
}

static int keep(void *context, const cJSON *reply, bool last)
{
    (void)last;
    *(cJSON **)context = cJSON_Duplicate(reply, true);
    return *(cJSON **)context ? 0 : -ENOMEM;
}

int ctl_ask(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what, cJSON **ret)
{
    cJSON *reply = NULL;
    int status = ctl_call(
        ctl,
        (struct ctl_call){.method = method, .parameters = parameters, .what = what, .reply = keep, .context = &reply});
    if (status == STATUS_DONE)
        *ret = reply;
    else
        cJSON_Delete(reply);
    return status;
}

cJSON *ctl_name(const char *key, const char *value)
{
    cJSON *object = cJSON_CreateObject();
    if (!object || !cJSON_AddStringToObject(object, key, value)) {
        err_line("not enough memory");
        exit(STATUS_REFUSED);
    }
    return object;
}
