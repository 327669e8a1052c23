/* What the tests of the library have in common: a client of a fake daemon, and what they look at. Uses cmocka. */
#pragma once

#include "client/rocmforge.h"
#include "fake_daemon.h"

/* For each test: nobody leaves a descriptor open. */
int rig_setup(void **state);
int rig_teardown(void **state);
#define RIG_TEST(function) cmocka_unit_test_setup_teardown(function, rig_setup, rig_teardown)

/* A daemon, and a client that is connected to it. */
rf_client *rig_start(struct fake **fake, fake_serve_fn *serve, const void *context);
void rig_stop(struct fake *fake, rf_client *client);

/* rf_call() with nothing but a method. */
int rig_call(rf_client *client);

/* The last failure's message has this in it. */
void assert_says(const rf_client *client, const char *text);

/* The connection is broken, and stays so. */
void assert_gone(rf_client *client);

/* --- what a daemon says, and what becomes of it --- */

/* Answers every request with the text that the context is. */
void serve_text(struct fake *fake, int socket);

/* A reply with progress, after which others follow. */
#define PROGRESS(done, left)                                                                                           \
    "{\"continues\":true,\"parameters\":{\"model\":{\"name\":\"m\"},\"progress\":{\"state\":\"filling\","              \
    "\"done\":" done ",\"total\":10,\"rate\":5,\"left\":" left "}}}"

/* What an rf_progress_fn, step(), has seen, and what it returns. */
struct steps {
    unsigned n;
    uint64_t done;
    double left;
    int result;
};
int step(void *context, const rf_progress *progress);
