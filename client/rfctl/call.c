/* Calls to the daemon, and the messages when they fail. */
#include "client/rfctl/format.h"
#include "client/rfctl/output.h"
#include "client/rfctl/rfctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

/* Tells the user that the daemon wants a model back that this program is attached to. */
static void draining(void *context, const char *name)
{
    (void)context;
    err_line("please detach from %s: it is being unloaded, or its device was lost", name);
}

void ctl_print_error(const struct rfctl *ctl, const char *name, const char *parameters)
{
    if (!ctl->options.json)
        return;
    cJSON *object = ctl_name("error", name);
    cJSON_AddRawToObject(object, "parameters", parameters ? parameters : "{}");
    char *text = cJSON_PrintUnformatted(object);
    if (text)
        out_json(text);
    cJSON_free(text);
    cJSON_Delete(object);
}

/* Prints an error of rfctl's own. The reason may contain a path. A path may be no valid UTF-8, but JSON must be. */
static void print_own_error(const struct rfctl *ctl, const char *name, const char *reason)
{
    char *clean = text_escape(reason, strlen(reason));
    cJSON *object = ctl_name("reason", clean);
    char *parameters = cJSON_PrintUnformatted(object);
    ctl_print_error(ctl, name, parameters);
    cJSON_free(parameters);
    cJSON_Delete(object);
    free(clean);
}

int ctl_connect(struct rfctl *ctl)
{
    if (ctl->client)
        return STATUS_DONE;
    if (rf_connect(ctl->options.socket, &ctl->client) < 0) {
        err_line("no daemon: %s", rf_error_message(NULL));
        print_own_error(ctl, "rfctl.NoDaemon", rf_error_message(NULL));
        return STATUS_NO_DAEMON;
    }
    rf_on_draining(ctl->client, draining, NULL);
    return STATUS_DONE;
}

void ctl_hurry(struct rfctl *ctl, unsigned seconds)
{
    const struct timeval limit = {.tv_sec = (time_t)seconds};
    ctl->hurried = seconds > 0;
    (void)setsockopt(rf_client_fd(ctl->client), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
}

/* Leaves out "cannot open x.gguf: " at the start of a message, if `what` is "load x.gguf": the line that is printed
 * names the file already. */
static const char *without_file(const char *message, const char *what)
{
    static const char begin[] = "cannot open ";
    const char *file = strchr(what, ' ');
    if (!file || strncmp(message, begin, sizeof(begin) - 1) != 0)
        return message;
    const char *named = message + sizeof(begin) - 1;
    size_t length = strlen(++file);
    return strncmp(named, file, length) == 0 && strncmp(named + length, ": ", 2) == 0 ? named + length + 2 : message;
}

static int fail(const struct rfctl *ctl, int error, const char *what, const struct refusal_words *words)
{
    const char *message = rf_error_message(ctl->client), *name = rf_error_name(ctl->client);
    if (name) {
        char *text = refusal_text(name, rf_error_parameters(ctl->client), message, words);
        err_line("cannot %s: %s", what, text);
        free(text);
        ctl_print_error(ctl, name, rf_error_parameters(ctl->client));
        bool went = strcmp(name, "io.rocmforge.ShuttingDown") == 0;
        return went ? STATUS_NO_DAEMON : STATUS_REFUSED;
    }
    err_line("cannot %s: %s", what, without_file(message, what));
    bool gone = error == -ECONNRESET || error == -EPIPE || (error == -ETIMEDOUT && ctl->hurried);
    print_own_error(ctl, gone ? "rfctl.NoDaemon" : "rfctl.Failed", message);
    return gone ? STATUS_NO_DAEMON : STATUS_REFUSED;
}

int ctl_fail(const struct rfctl *ctl, int error, const char *what)
{
    return fail(ctl, error, what, &(struct refusal_words){0});
}

int ctl_refuse(const struct rfctl *ctl, const char *format, ...)
{
    char *reason = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&reason, format, arguments) < 0)
        reason = NULL;
    va_end(arguments);
    err_line("%s", reason ? reason : "not enough memory");
    print_own_error(ctl, "rfctl.Failed", reason ? reason : "not enough memory");
    free(reason);
    return STATUS_REFUSED;
}

int ctl_receive(void *context, const char *parameters, int continues, int *fds, size_t n_fds)
{
    struct ctl_receiver *receiver = context;
    (void)fds;
    (void)n_fds;
    if (receiver->ctl->replies) {
        out_json(parameters);
        receiver->output = out_flush();
        if (receiver->output < 0)
            return receiver->output;
    }
    if (!receiver->reply)
        return 0;
    cJSON *reply = cJSON_Parse(parameters);
    if (!reply)
        return -EPROTO;
    int r = receiver->reply(receiver->context, reply, !continues);
    cJSON_Delete(reply);
    if (r == 0)
        receiver->output = r = out_flush();
    return r;
}

int ctl_received(const struct ctl_receiver *receiver, int r)
{
    if (receiver->output < 0)
        return STATUS_REFUSED; /* main() prints the error of the output */
    return r < 0 ? fail(receiver->ctl, r, receiver->what, &receiver->words) : STATUS_DONE;
}

int ctl_call(struct rfctl *ctl, struct ctl_call call)
{
    int status = ctl_connect(ctl);
    char *parameters = call.parameters ? cJSON_PrintUnformatted(call.parameters) : NULL;
    if (status == STATUS_DONE) {
        struct ctl_receiver receiver = {
            .ctl = ctl, .what = call.what, .reply = call.reply, .context = call.context, .words = call.words};
        int r = rf_call(ctl->client, call.method, parameters, call.flags, NULL, 0, ctl_receive, &receiver);
        status = ctl_received(&receiver, r);
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

int ctl_ask_with(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what,
                 const struct refusal_words *words, cJSON **ret)
{
    cJSON *reply = NULL;
    int status = ctl_call(ctl, (struct ctl_call){.method = method,
                                                 .parameters = parameters,
                                                 .what = what,
                                                 .reply = keep,
                                                 .context = &reply,
                                                 .words = *words});
    if (status == STATUS_DONE)
        *ret = reply;
    else
        cJSON_Delete(reply);
    return status;
}

int ctl_ask(struct rfctl *ctl, const char *method, cJSON *parameters, const char *what, cJSON **ret)
{
    static const struct refusal_words words = {.loading = "'rfctl watch' tells when it is resident"};
    return ctl_ask_with(ctl, method, parameters, what, &words, ret);
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

cJSON *ctl_model(const struct rfctl *ctl)
{
    cJSON *object = ctl_name("name", ctl->arguments[0]);
    if (ctl->options.deadline > 0)
        cJSON_AddNumberToObject(object, "deadline", (double)ctl->options.deadline);
    return object;
}
