/* How a failure is recorded on a connection. rf_error_message(), rf_error_name() and rf_error_parameters(), which tell
 * it to the user of the library, are in the same file. */
#pragma once

#include "client/rocmforge.h"

/* Forgets the failure of the last call. If client is NULL: that of the calling thread's last rf_connect(). */
void client_clear(rf_client *client);

/* Records a message for people and returns `error`, a negative errno. Control characters in the message become '?',
 * because parts of it may come from a file. Drops the name and the parameters of an earlier error of the daemon: a
 * caller that reports such an error sets them after this call. If client is NULL, the message is the one that
 * rf_error_message(NULL) returns. */
int client_fail(rf_client *client, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same, and the connection cannot be used any more. client is not NULL. Frees nothing. */
int client_break(rf_client *client, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Records that a reply of the daemon to this method is wrong, and returns -EPROTO. what: the part of it that is. The
 * connection can still be used, for instance to give back a lease. */
int client_fail_answer(rf_client *client, const char *method, const char *what);

/* The same, and the connection cannot be used any more. */
int client_break_answer(rf_client *client, const char *method, const char *what);

/* Ends the connection without a message: the failure is recorded already, or is the caller's own. */
void client_disconnect(rf_client *client);
