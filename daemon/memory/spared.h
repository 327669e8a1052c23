/* Leaves the arena of an unloaded model to its device for a moment, and has it freed when the device rests: spare.h
 * says why. Warns if a driver does not get memory back.
 *
 * Loop thread only, but for spared_leave(). */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/device/spare.h"
#include "daemon/model/registry.h"

struct spared {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    uint64_t keep_ns; /* how long an arena is kept; 0: it is freed at once */
    uv_timer_t timer;
    uint64_t since; /* uv_hrtime() when the timer was started by the first of those that are kept now; 0: none is */
};

/* How long an arena is kept by default, and at most. */
#define SPARED_SECONDS_DEFAULT 1
#define SPARED_SECONDS_MAX     60

/* The caller has set the first members. 0 or a negative errno. */
int spared_init(struct spared *spared);

/* The loop closes the timer later, so the struct must live until then. What is kept is freed with the devices. */
void spared_close(struct spared *spared);

/* Worker. Leaves the arena of a model that nobody uses to its device. kept: the service manager had a descriptor of it.
 * Returns false if it has to be freed now. */
bool spared_leave(struct spared *spared, const struct model *model, bool kept);

/* Has what is kept freed after keep_ns, or later if the device has a load then. */
void spared_later(struct spared *spared);

/* The model of an arena whose memory the driver should have back. */
struct spare_origin spared_origin(const struct model *model);

/* Warns if the driver did not get the memory back. A client may end its lease and keep the IPC handle open. Then the
 * driver does not free the memory, and our ledger cannot see that. With a memfd this is harmless. */
void spared_check(const struct device *device, const struct spare_origin *origin, uint64_t bytes, uint64_t free_before,
                  uint64_t free_after);
