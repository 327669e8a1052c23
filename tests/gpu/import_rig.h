/* Tests the import module, with the other processes that this needs: a handle cannot be opened by the process that made
 * it. So a test program starts itself again, as a server or as a client. A server plays the daemon and exports a model
 * with a device module. A client opens it and can be killed.
 *
 * Environment: ROCMFORGE_TEST_MODULE, the device module; ROCMFORGE_TEST_IMPORT, the import module;
 * ROCMFORGE_TEST_EXPORT, "fd" or "ipc": how servers export. */
#pragma once

#include "client/import.h"
#include "tests/gpu/rig.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Set when import_rig_begin() has returned 0. */
extern const struct import_module *module;
extern struct model model; /* the model that all servers export */
extern struct rig
    fake; /* the fake runtime of the import module; functions are NULL on a real GPU, and so is the device module */

/* Called first in main(). In a process that was started as a server or client it does that work and does not return.
 * Otherwise it loads the import module and checks that there are devices; the program's argument selects tests.
 * Returns 0; -ENODEV; or another negative errno after printing why. After two minutes SIGALRM ends the process. */
int import_rig_begin(int argc, char **argv);

/* Called last in main(). */
void import_rig_end(void);

/* Looks up a function of the runtime, or of the fake, that the import module is linked with. NULL if there is none. */
void *runtime_find(const char *name);

/* A process that this one started. process_end() ends it. */
struct process {
    pid_t pid;
    int in, out; /* our ends of its standard input and output, which are sockets */
    int fd;      /* a server's: the descriptor of the last notice, which is closed when the next one comes; -1: none */
};

/* What a server writes when it is ready, and after each command. */
struct notice {
    int status; /* result of opening the device, or of the command */
    unsigned devices;
    uint64_t bytes;
    uint64_t free_before, free_after; /* free bytes of the device: before the model was loaded, and now */
    char id[32], uuid[64], pci[24];
    uint8_t handle[64];
    size_t handle_size; /* 0: none */
    int fd;             /* in the process that has the notice; -1: none */
};

/* What a client writes. */
struct answer {
    bool fine; /* it opened the memory, and the bytes are right */
    struct import_fault fault;
};

/* Sends the signal, if it is not 0, and closes the input of the process, which ends it. Waits and returns its wait
 * status: 0 for a server that ended well, and for a client that ended well and whose answer was fine. */
int process_end(struct process *process, int signal);

/* The functions below fail the test that calls them if they cannot do their work. */

/* Starts a server. It loads the model into the device with this index ("0") and exports it. */
void server_start(struct process *ret, const char *index, struct notice *ret_notice);

/* 'f': frees the arena and reports free_after; 'l': loads and exports again. The descriptor of the notice before is
 * closed first. */
void server_do(struct process *server, char command, struct notice *ret);

/* Whether servers export by descriptor. */
bool exports_descriptors(const struct notice *notice);

/* Starts a client. It opens the memory of the notice, compares it, and keeps it open until its input ends. how: the
 * number of a user that it becomes before it calls the runtime; "": it stays the same user; "apart": it leaves the PID
 * and IPC namespaces that it is in. This does not wait for the answer. */
void client_start(struct process *ret, const struct notice *notice, const char *how);

/* Waits for the client's answer. It answers once. */
void client_ask(struct process *client, struct answer *ret);

/* The same, and the answer has to be fine. */
void client_ready(struct process *client);

/* What the daemon would tell a client. Points into the notice, which has to live as long. */
struct import_source source_of(const struct notice *notice);

/* Opens the memory in this process. The caller closes it with module->close(). */
struct import_mapping *open_fine(const struct import_source *source);

/* Reads all of the memory and a part of it. Does not fail the test: returns 0; -EILSEQ if the bytes are wrong; or
 * what reading returned. Prints what is wrong. */
int compare(struct import_mapping *mapping);

/* Checks that `n` handles are open in this process. Only the fake runtime counts them; otherwise this checks
 * nothing. */
void assert_open(int n);
void assert_nothing_open(void);

/* On a GPU: ends the test as skipped. */
void skip_on_hardware(void);
