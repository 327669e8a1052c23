/* The import module under test, and the other processes that its tests need: a handle cannot be opened by the process
 * that made it. So a test's program starts itself again, as servers, which play the daemon and export a model with a
 * device module; and as clients, to be killed.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the device module; ROCMFORGE_TEST_IMPORT, the import module. */
#pragma once

#include "client/import.h"
#include "tests/gpu/rig.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* All three are there once import_rig_begin() has returned 0. */
extern const struct import_module *module;
extern struct model model; /* what every server exports: the same in each process */
extern struct rig fake;    /* what the import module runs on: NULL functions on a real GPU, and no device module */

/* First thing in main(): becomes the server or the client that it was started as, and does not return then. Else loads
 * the import module, and sees whether there are devices; an argument says which tests are to run. Returns 0; -ENODEV;
 * or another negative errno, after saying why. Whatever takes more than two minutes from here on is ended by SIGALRM.
 */
int import_rig_begin(int argc, char **argv);

/* Last thing in main(). */
void import_rig_end(void);

/* A function of the runtime that the import module is linked with, or of the fake; NULL: it has none of that name. */
void *runtime_find(const char *name);

/* A process that was started, until process_end(). */
struct process {
    pid_t pid;
    int in, out; /* its standard input and output, from our side */
};

/* What a server says when it is ready, and after each command. */
struct notice {
    int status; /* of opening the device, or of the command */
    unsigned devices;
    uint64_t bytes;
    uint64_t free_before, free_after; /* of the device: before the model, and now */
    char id[32], uuid[64], pci[24];
    uint8_t handle[64];
    size_t handle_size;
};

/* What a client says. */
struct answer {
    bool fine; /* it could open what it was told of, and the bytes are right */
    struct import_fault fault;
};

/* Ends its input, which ends it; with a signal that is not 0, that comes first. Waits for it and returns its wait
 * status: 0 of a server that ended well, and of a client that did, whose answer was fine. */
int process_end(struct process *process, int signal);

/* The rest fails the test that calls it if it cannot do what it says. */

/* Starts a server that has loaded the model into the device with this index, "0" say, and exported it. */
void server_start(struct process *ret, const char *index, struct notice *ret_notice);

/* 'f': frees the arena, and asks for free_after; 'l': loads and exports again. */
void server_do(struct process *server, char command, struct notice *ret);

/* Starts a client that opens what the notice tells of, compares, and keeps it open until its input ends. user: a
 * number, whom it becomes before it asks the runtime anything; "": it stays who it is. It does not wait for the answer.
 */
void client_start(struct process *ret, const struct notice *notice, const char *user);

/* Waits for its answer, which comes once. */
void client_ask(struct process *client, struct answer *ret);

/* The same, and it has to be fine. */
void client_ready(struct process *client);

/* What the daemon would tell of it. Points into the notice, which has to stay as long. */
struct import_source source_of(const struct notice *notice);

/* Opens it in this process; the caller closes it, with module->close(). */
struct import_mapping *open_fine(const struct import_source *source);

/* Reads all of it, and a part: fails no test, but returns 0; -EILSEQ, these are not the model's bytes; or what reading
 * returned. Says why not. */
int compare(struct import_mapping *mapping);

/* So many handles are open in this process. Only the fake counts them; else these do nothing. */
void assert_open(int n);
void assert_nothing_open(void);

/* Ends the test, as one that was skipped, if there is no fake. */
void skip_on_hardware(void);
