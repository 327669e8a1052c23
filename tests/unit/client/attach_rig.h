/* What the tests of attaching have in common: a daemon that answers Attach, well or badly. Uses cmocka. */
#pragma once

#include "client_rig.h"
#include "kernels/types.h"
#include "proto/table.h"

#include <fcntl.h>
#include <stdbool.h>

#define SEALS  (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK)
#define MEMORY 4096u

/* How a daemon answers Attach, and how often it is given leases back. */
struct attach {
    const char *reply; /* NULL: a good one */
    const void *table; /* NULL: a good one */
    size_t table_size;
    int table_seals;
    size_t memory_size;
    int memory_seals;
    bool swapped;       /* the table comes before the memory */
    bool plain;         /* the memory is no memfd */
    const void *header; /* NULL: none is given */
    size_t header_size;
    int header_seals;
    unsigned n_detached;
};

#define GOOD_ATTACH .table_seals = SEALS, .memory_seals = SEALS, .memory_size = MEMORY

/* Of the good table. */
#define N_GOOD 5
extern const struct table_tensor good_tensors[N_GOOD];

#define ATTACH_DEVICE(kind)                                                                                            \
    "\"device\":{\"id\":\"" kind ":0\",\"kind\":\"" kind "\",\"uuid\":\"u-1\",\"pci\":\"0000:01:00.0\"}"
#define ATTACH_REPLY(model, device, rest) "{\"parameters\":{\"lease\":5,\"model\":" model "," device "," rest "}}"
#define MODEL                             "{\"name\":\"m\",\"id\":3}"
#define REST                              "\"fd\":0,\"handle\":null,\"tensors\":null,\"table\":1"

/* Answers one call. */
void attach_send(const struct attach *attach, int socket);

/* Answers until the client is gone, and counts how often a lease comes back. */
void serve_attach(struct fake *fake, int socket);

/* Fills in what is not said, and starts a daemon. The caller frees *table. */
rf_client *attach_start(struct fake **fake, struct attach *attach, void **table);

/* Attaching fails; nothing is leaked, and the lease is given back, whatever is wrong with the answer. */
void attach_fails(struct attach *attach, int error, const char *message, unsigned n_detached);
