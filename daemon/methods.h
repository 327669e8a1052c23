/* The methods of the interface: finds the one that a call names, reads its parameters, and answers.
 *
 * Loop thread only. */
#pragma once

#include "daemon/conn.h"

/* Answers a call, now or later. `context` is the server. */
void methods_dispatch(struct call *call, void *context);

/* Names of all methods of io.rocmforge that have a handler, ended by NULL. For the test that compares them with the
 * interface's text. */
const char *const *methods_names(void);
