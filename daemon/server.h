/* The whole daemon: puts its layers together, and takes them down again.
 *
 * Loop thread only. */
#pragma once

#include "daemon/api/api.h"

struct server {
    struct core core;
    struct quota *quota;
    struct devices devices;
    struct registry registry;
    struct events *events;
    struct residency residency;
    struct survey *survey;
    struct direct *direct; /* NULL: files are read through the page cache */
    struct loads loads;
    struct verifies verifies;
    struct rechecks rechecks;
    struct api api;
    struct conns *conns; /* NULL once all are closed */

    uv_timer_t ticker;        /* reports progress while a job is under way, and looks for what hangs */
    uint64_t device_patience; /* nanoseconds */
    bool conns_closed;
    bool threads_hang;                /* in drivers, after it has stopped: exit() would call these drivers and wait */
    uint64_t stuck_since, stop_steps; /* while it ends: core.steps were as many since then, by uv_hrtime() */
    void (*stopped)(struct server *server);
};

struct server_config {
    struct quota_limits limits;
    uint64_t host_cache; /* bytes */
    unsigned keep_freed; /* seconds; see spared.h */
    bool lock_memory;    /* of the copies in host memory */
    enum page_cache page_cache;
    unsigned workers;        /* threads of the work queue */
    unsigned device_timeout; /* seconds; 0: the default */
    bool has_processor;      /* see struct core */
};

/* Sets up everything that needs no device; devices are added to server->devices then, at least the host. 0 or a
 * negative errno. */
int server_init(struct server *server, uv_loop_t *loop, const struct server_config *config);

/* Ends everything: calls get ShuttingDown, connections close, loads stop, memory is freed, devices are closed. `done`
 * is called when nothing is left but what the caller owns. */
void server_stop(struct server *server, void (*done)(struct server *server));
