/* The devices that the daemon has, and sets of devices among which a request lets the daemon choose.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/device/scheduler.h"

#include <stdbool.h>
#include <stddef.h>

struct devices {
    struct device *devices[DEVICES_MAX]; /* GPUs first, the host last */
    struct scheduler *schedulers[DEVICES_MAX];
    size_t n;
};

/* Adds a device and makes its staging slots. devices_close() closes it. Returns 0; or a negative errno and a fault, and
 * the device stays the caller's. */
int devices_add(struct devices *devices, struct device *device, struct device_fault *ret_fault);

/* Puts the devices of another set in front of these, and leaves that set empty. -ENOSPC: there are too many; nothing
 * has changed. */
int devices_join(struct devices *devices, struct devices *first);

/* Closes all devices. All slots were given back, and all arenas freed or left to device_spare(). */
void devices_close(struct devices *devices);

/* Every kind of device, ended by NULL: of GPUs first, in the order in which "auto" tries them, then the host's memory.
 * A kind of GPUs has a module for the daemon, device-KIND.so, and one for clients, import-KIND.so. */
extern const char *const device_kinds[];

/* The memory of this machine. It is always there. */
struct device *devices_host(const struct devices *devices);

/* The scheduler of a device's slots. */
struct scheduler *devices_scheduler(const struct devices *devices, const struct device *device);

/* Some of the devices. */
struct device_set {
    struct device *devices[DEVICES_MAX];
    size_t n;
};

/* Those that a parameter or option names: "auto" (the GPUs; the host, if no GPU works), a kind, or one id. Lost devices
 * are in the set only if it would be empty without them. Returns how many. */
size_t devices_named(const struct devices *devices, const char *name, struct device_set *ret);

bool device_set_has(const struct device_set *set, const struct device *device);

/* Whether both have the same devices; whether they have at least one in common. */
bool device_set_equal(const struct device_set *a, const struct device_set *b);
bool device_set_overlap(const struct device_set *a, const struct device_set *b);
