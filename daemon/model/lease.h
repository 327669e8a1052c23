/* A lease: the right of a connection to a model's memory. The memory is not freed while it lives.
 *
 * Loop thread only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct conn;
struct model;
struct registry;

struct lease {
    uint64_t id; /* never used twice */
    struct registry *registry;
    struct model *model;
    struct conn *conn;
    uint64_t since; /* uv_hrtime() */
    bool told;      /* that the model drains */
    LIST_ENTRY(lease) of_model;
    LIST_ENTRY(lease) of_conn;
};

LIST_HEAD(lease_list, lease);

/* Ends a lease, on its connection's request or because that is gone, and tells the model. */
void lease_end(struct lease *lease);
