#include "client/error.h"

#include "client/connection.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static _Thread_local char connect_message[CLIENT_MESSAGE_SIZE];

/* The daemon's error belongs to an earlier failure than the one that is recorded now. */
static void forget_daemon_error(rf_client *client)
{
    free(client->error_name);
    client->error_name = NULL;
    cJSON_free(client->error_parameters);
    client->error_parameters = NULL;
}

void client_clear(rf_client *client)
{
    if (!client) {
        connect_message[0] = '\0';
        return;
    }
    client->message[0] = '\0';
    forget_daemon_error(client);
}

__attribute__((format(printf, 2, 0))) static void word(rf_client *client, const char *format, va_list arguments)
{
    char *message = client ? client->message : connect_message;
    vsnprintf(message, CLIENT_MESSAGE_SIZE, format, arguments);
    for (char *c = message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    if (client)
        forget_daemon_error(client);
}

int client_fail(rf_client *client, int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    word(client, format, arguments);
    va_end(arguments);
    return error;
}

void client_disconnect(rf_client *client)
{
    client->broken = true;
    shutdown(client->socket, SHUT_RDWR);
}

int client_break(rf_client *client, int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    word(client, format, arguments);
    va_end(arguments);
    client_disconnect(client);
    return error;
}

int client_fail_answer(rf_client *client, const char *method, const char *what)
{
    return client_fail(client, -EPROTO, "the daemon's answer to %s is wrong: %s", method, what);
}

int client_break_answer(rf_client *client, const char *method, const char *what)
{
    client_fail_answer(client, method, what);
    client_disconnect(client);
    return -EPROTO;
}

const char *rf_error_message(const rf_client *client)
{
    const char *message = client ? client->message : connect_message;
    return message[0] ? message : "no error";
}

const char *rf_error_name(const rf_client *client)
{
    return client ? client->error_name : NULL;
}

const char *rf_error_parameters(const rf_client *client)
{
    return client ? client->error_parameters : NULL;
}
