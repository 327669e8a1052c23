/* The daemon: what its parts share, wired together by main.c.
 *
 * Loop thread only. */
#pragma once

#include "daemon/wire/conn.h"
#include "daemon/device/device.h"
#include "daemon/session/events.h"
#include "daemon/base/mailbox.h"
#include "daemon/model/registry.h"
#include "daemon/device/scheduler.h"
#include "daemon/base/users.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <uv.h>

struct load;
struct verify;

struct server {
    uv_loop_t *loop;
    struct mailbox *mailbox;
    struct registry registry;
    struct events *events;
    struct conns *conns;

    struct device *devices[DEVICES_MAX]; /* GPUs first, the host last */
    struct scheduler *schedulers[DEVICES_MAX];
    size_t n_devices;

    TAILQ_HEAD(, load) loads;
    size_t n_loads;
    TAILQ_HEAD(verify_list, verify) verifies;
    size_t n_verify_jobs; /* under way on workers */
    LIST_HEAD(, planning) plannings;
    size_t n_jobs; /* loads, unloads, verifications, plans: what must be over before the daemon ends */

    /* Models came or went, or a job began. NULL: nobody asks. */
    void (*changed)(struct server *server);

    struct user_limits limits;
    uint64_t cache_size; /* of host memory for models that a GPU has no room for */
    uint64_t cache_used; /* its ledger */

    uint64_t started; /* uv_hrtime() */
    unsigned workers;
    bool has_processor; /* the loop: workers leave it one */
    bool stopping;
    bool conns_closed;
    void (*stopped)(struct server *server);
    uv_timer_t ticker; /* reports progress while there is some */
    uv_timer_t reaper; /* unloads what has been idle for too long */
    uv_idle_t vigil;
    uint64_t vigil_ends; /* uv_hrtime() */
};

/* This machine's memory, which there always is. */
struct device *server_host(const struct server *server);

struct scheduler *server_scheduler(struct server *server, const struct device *device);

/* Tells whoever asks that models came or went, or a job began. */
void server_changed(struct server *server);

/* Something begins, or ends, that the daemon does not stop before. */
void server_job_begin(struct server *server);
void server_job_end(struct server *server);

/* Something is soon to be over that something else waits for: for a moment the loop does not sleep, if it has a
 * processor, and need not be woken then. */
void server_keep_vigil(struct server *server);

/* The device is lost: its models fail, and those who watch are told. What becomes of these is residency's business. */
void server_device_failed(struct server *server, struct device *device);

/* A model is gone: loads that wait for its name look again. */
void server_loads_retry(struct server *server);

/* Sets up everything that needs no device: registry, events, mailbox, ticker. 0 or a negative errno. */
int server_init(struct server *server, uv_loop_t *loop);

/* Adds a device, which the server closes in the end: makes its staging. */
int server_add_device(struct server *server, struct device *device, struct device_fault *ret_fault);

/* Ends everything: calls get ShuttingDown, connections close, loads stop, memory is freed, devices are closed. `done`
 * is called when nothing is left but what the caller owns. */
void server_stop(struct server *server, void (*done)(struct server *server));
