/* An attached model: the struct that the files of the library share. */
#pragma once

#include "client/connection.h"

#include <cjson/cJSON.h>

struct import_mapping;
struct import_module;
struct metadata;

struct rf_model {
    LIST_ENTRY(rf_model) link;
    rf_client *client;
    cJSON *reply; /* the reply to Attach, which owns the texts below */
    uint64_t id;
    uint64_t lease;
    bool leased;  /* `lease` is set */
    bool refused; /* the daemon has it, and gave rf_reconnect() no lease: it drains, or its device was lost */
    const char *name;
    const char *device;
    const char *kind;
    const char *uuid; /* or NULL */
    const char *pci;  /* or NULL */

    const void *table; /* mapped; NULL: not yet */
    uint64_t table_bytes;
    uint64_t bytes; /* of the model's memory */

    int header_fd;      /* -1: the daemon gave none, or `header` is set */
    const void *header; /* mapped when it is first asked for; NULL: not yet */
    uint64_t header_bytes;
    struct metadata *metadata; /* NULL: not read yet */

    const struct import_module *module;
    struct import_mapping *mapping; /* NULL: not mapped */
};
