#include "client/call.h"

#include "client/connection.h"
#include "client/error.h"
#include "client/explain.h"
#include "client/fields.h"
#include "proto/json_check.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define INTERFACE "io.rocmforge."

/* The most values in a reply. cJSON takes 64 bytes for each, so a reply of 64 MiB, "[[[[", could take gigabytes. */
#define REPLY_VALUES_MAX (8u << 20)

/* --- the request --- */

static bool method_is_name(const char *method)
{
    for (const char *c = method; *c; c++)
        if (!isalnum((unsigned char)*c) && *c != '.' && *c != '-')
            return false;
    return method[0];
}

static struct frame_text part(const char *text)
{
    return (struct frame_text){.text = text, .size = strlen(text)};
}

static int request_put(rf_client *client, const struct call *call)
{
    const char *parameters = call->parameters ? call->parameters : "{}";
    const char *reason;
    if (!method_is_name(call->method))
        return client_fail(client, -EINVAL, "not the name of a method");
    if (json_check(parameters, strlen(parameters), &reason, NULL) < 0)
        return client_fail(client, -EINVAL, "the parameters are not a valid JSON object: %s", reason);
    const struct frame_text parts[] = {
        part("{\"method\":\""), part(strchr(call->method, '.') ? "" : INTERFACE),
        part(call->method),     part("\",\"parameters\":"),
        part(parameters),       part(call->more ? ",\"more\":true}" : "}"),
    };
    int r = frame_writer_put_texts(client->writer, parts, sizeof(parts) / sizeof(parts[0]), call->fds, call->n_fds);
    if (r == -ENOBUFS)
        return client_fail(client, -EMSGSIZE, "a request has at most %u bytes", CLIENT_REQUEST_MAX);
    return r < 0 ? client_fail(client, r, "the request cannot be sent: %s", strerror(-r)) : 0;
}

static int fail_gone(rf_client *client)
{
    return client_break(client, -ECONNRESET, "the daemon closed the connection");
}

/* The socket is a blocking one. So EAGAIN means that a time limit passed which the user of the library set on it. */
static int fail_late(rf_client *client)
{
    return client_break(client, -ETIMEDOUT, "the daemon did not answer in time");
}

/* The daemon sends nothing between two calls, so anything there is an error, or the end of the connection. Before the
 * first request that does not hold: a daemon that cannot serve a new client sends it an error, which is read as the
 * reply to the first call. */
static int check_silence(rf_client *client)
{
    if (client->broken)
        return client_fail(client, -ECONNRESET, "the connection to the daemon is broken");
    char byte;
    ssize_t n = client->used ? recv(client->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) : -1;
    if (n == 0)
        return fail_gone(client);
    if (n > 0 || frame_reader_pending(client->reader) > 0)
        return client_break(client, -EPROTO, "the daemon sent data that belongs to no call");
    return 0;
}

static int request_send(rf_client *client, const struct call *call)
{
    int r = request_put(client, call);
    if (r < 0)
        return r;
    client->used = true;
    r = frame_writer_flush(client->writer, client->socket);
    /* The daemon closed the connection. It may have sent the reason before: go on and read it. */
    if (r == -EPIPE || r == -ECONNRESET)
        return 0;
    if (r == -EAGAIN)
        return fail_late(client);
    return r < 0 ? client_break(client, -ECONNRESET, "sending to the daemon failed: %s", strerror(-r)) : 0;
}

/* --- replies --- */

static int reply_wait(rf_client *client, struct frame_message *ret)
{
    for (;;) {
        int r = frame_reader_next(client->reader, ret);
        if (r == 0)
            r = frame_reader_fill(client->reader, client->socket) ?: -ECONNRESET;
        else if (r > 0)
            return 0;
        if (r == -ECONNRESET || r == -EPIPE)
            return fail_gone(client);
        if (r == -EAGAIN)
            return fail_late(client);
        if (r == -EMSGSIZE)
            return client_break(client, -EPROTO, "the daemon sent a reply of more than %u bytes", CLIENT_REPLY_MAX);
        if (r == -E2BIG)
            return client_break(client, -EPROTO, "the daemon sent more descriptors than a message may have");
        if (r == -EMFILE)
            return client_break(client, r, "descriptors beside a reply were lost: too many files are open");
        if (r < 0)
            return client_break(client, r, "receiving from the daemon failed: %s", strerror(-r));
    }
}

/* Records an error of the daemon. `parameters` are borrowed and may be NULL. */
static int reply_error(rf_client *client, const char *name, const cJSON *parameters)
{
    enum wire_error error = wire_error_find(name);
    char text[CLIENT_MESSAGE_SIZE];
    if (error == WIRE_ERROR_COUNT)
        snprintf(text, sizeof(text), "the daemon answered with an error that is not known here: %s", name);
    else
        explain(text, sizeof(text), error, parameters);
    int r = client_fail(client, wire_error_errno(error), "%s", text);
    client->error_name = strdup(name);
    client->error_parameters = parameters ? cJSON_PrintUnformatted(parameters) : NULL;
    return r;
}

static int fail_reply(rf_client *client, const char *why)
{
    return client_break(client, -EPROTO, "the daemon sent an invalid reply: %s", why);
}

/* Passes on the names of models that this connection should detach from. The daemon sends each name once, in any reply.
 */
static void tell_draining(const rf_client *client, const cJSON *parameters)
{
    const cJSON *names = field(parameters, "draining"), *name;
    if (!client->draining || !cJSON_IsArray(names))
        return;
    cJSON_ArrayForEach (name, names) {
        if (cJSON_IsString(name))
            client->draining(client->draining_context, name->valuestring);
    }
}

static int reply_take(rf_client *client, const struct call *call, cJSON *reply, struct frame_message *message,
                      bool *ret_continues)
{
    const cJSON *error = field(reply, "error");
    const cJSON *continues = field(reply, "continues");
    const cJSON *given = field(reply, "parameters");
    if (!cJSON_IsObject(reply) || (given && !cJSON_IsObject(given)) || (error && !cJSON_IsString(error)) ||
        (continues && !cJSON_IsBool(continues)))
        return fail_reply(client, "a field has the wrong type");
    tell_draining(client, given);
    if (error)
        return reply_error(client, error->valuestring, given);
    if (cJSON_IsTrue(continues) && !call->more)
        return fail_reply(client, "it says that other replies follow, but the call accepts only one");
    *ret_continues = cJSON_IsTrue(continues);
    if (!call->reply)
        return 0;

    cJSON *parameters = given ? cJSON_DetachItemViaPointer(reply, (cJSON *)given) : cJSON_CreateObject();
    if (!parameters)
        return client_break(client, -ENOMEM, "no memory for a reply");
    int r = call->reply(call->context, &parameters, *ret_continues, message);
    cJSON_Delete(parameters);
    if (r != 0 && *ret_continues)
        client_disconnect(client);
    return r;
}

/* Counts the characters that can be in front of a value. Every value but the outermost one follows such a character. */
static bool reply_has_too_many_values(const struct frame_message *message)
{
    size_t n = 0;
    for (size_t i = 0; i < message->size; i++) {
        char c = message->text[i];
        n += c == ',' || c == ':' || c == '[' || c == '{';
    }
    return n > REPLY_VALUES_MAX;
}

/* Waits for a reply and handles it. On success *ret_continues tells whether another one follows. */
static int reply_next(rf_client *client, const struct call *call, bool *ret_continues)
{
    struct frame_message message;
    int r = reply_wait(client, &message);
    if (r < 0)
        return r;
    if (reply_has_too_many_values(&message))
        return fail_reply(client, "it has too many values");
    cJSON *reply = cJSON_ParseWithLengthOpts(message.text, message.size + 1, NULL, true);
    if (!reply)
        return fail_reply(client, "it is not JSON");
    r = reply_take(client, call, reply, &message, ret_continues);
    cJSON_Delete(reply);
    return r;
}

bool client_is_forked(const rf_client *client)
{
    return client->process != getpid();
}

int client_call(rf_client *client, const struct call *call)
{
    if (client_is_forked(client)) {
        client_clear(client);
        return client_fail(client, -ENOTSUP,
                           "the connection belongs to the parent process, which this process was forked from");
    }
    if (client->calling)
        return client_fail(client, -EDEADLK, "another call is under way on this connection");
    client_clear(client);
    int r = check_silence(client);
    if (r == 0)
        r = request_send(client, call);
    if (r < 0)
        return r;
    client->calling = true;
    bool continues = true;
    while (r == 0 && continues)
        r = reply_next(client, call, &continues);
    client->calling = false;
    return r;
}

/* --- calls that the user of the library makes --- */

struct user_call {
    rf_client *client;
    rf_reply_fn *reply;
    void *context;
};

int client_give(rf_client *client, rf_reply_fn *reply, void *context, const cJSON *parameters, bool continues,
                struct frame_message *message)
{
    if (!reply)
        return 0;
    char *text = cJSON_PrintUnformatted(parameters);
    if (!text)
        return client_fail(client, -ENOMEM, "no memory for a reply");
    int r = reply(context, text, continues, message->fds, message->n_fds);
    cJSON_free(text);
    return r == 0 ? 0 : client_fail(client, r, "the caller ended the call");
}

int client_progress(rf_client *client, const char *method, const cJSON *progress, rf_progress_fn *function,
                    void *context)
{
    const cJSON *left = field(progress, "left");
    struct rf_progress p = {.state = field_text(progress, "state"), .seconds_left = -1};
    if (!p.state || !field_integer(progress, "done", &p.done) || !field_integer(progress, "total", &p.total) ||
        !field_integer(progress, "rate", &p.rate) || (left && !cJSON_IsNumber(left)))
        return client_break_answer(client, method, "progress");
    if (left)
        p.seconds_left = left->valuedouble;
    int r = function ? function(context, &p) : 0;
    return r == 0 ? 0 : client_fail(client, r, "the caller ended the call");
}

static int user_reply(void *context, cJSON **parameters, bool continues, struct frame_message *message)
{
    const struct user_call *user = context;
    return client_give(user->client, user->reply, user->context, *parameters, continues, message);
}

int rf_call(rf_client *client, const char *method, const char *parameters, unsigned flags, const int *fds, size_t n_fds,
            rf_reply_fn *reply, void *context)
{
    struct user_call user = {.client = client, .reply = reply, .context = context};
    return client_call(client, &(struct call){
                                   .method = method,
                                   .parameters = parameters,
                                   .more = flags & RF_CALL_MORE,
                                   .fds = fds,
                                   .n_fds = n_fds,
                                   .reply = reply ? user_reply : NULL,
                                   .context = &user,
                               });
}
