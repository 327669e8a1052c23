/* All loads under way: what they need, and what concerns several of them. load.h begins one.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/load/cold.h"
#include "daemon/memory/residency.h"
#include "daemon/wire/errors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct direct;
struct events;
struct load;
struct verifies;

/* The owner sets the members before `list`. */
struct loads {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct residency *residency;
    struct verifies *verifies;
    struct events *events;
    struct quota *quota;
    struct direct *direct; /* NULL: files are read through the page cache */
    enum page_cache page_cache;
    TAILQ_HEAD(, load) list; /* oldest first */
    size_t n;
};

/* The owner has set the members before `list`. */
void loads_init(struct loads *loads);

/* Call when a model is gone or may be evicted now. Loads that wait for its name or its memory check again. */
void loads_retry(struct loads *loads);

/* Reports progress to the calls that wait. Queued loads check again: another process may have freed memory, or their
 * time limit has passed. Called several times a second. */
void loads_report(struct loads *loads);

/* The number of loads under way that the peer sees: its own, and those whose model it sees. Trusted users see all. */
size_t loads_seen(const struct loads *loads, const struct peer *peer);

/* Whether the device has held a chunk of a load since before that time, by uv_hrtime(). Slow files do not count,
 * because any user can load one. */
bool loads_hang(const struct loads *loads, const struct device *device, uint64_t begun_before);

/* A device is lost because a call of its driver does not return: its loads fail. Those that the call belongs to stay,
 * and nobody waits for them. */
void loads_lose_device(struct loads *loads, struct device *device);

/* Jobs that read files begin to hang, or go on: makes slots in place of those that they have, and lets loads go on. */
void loads_held_up(struct loads *loads);

/* Calls load_end() for all loads. */
void loads_end(struct loads *loads, enum wire_error error);
