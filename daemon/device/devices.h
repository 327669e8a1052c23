/* The devices that the daemon has, and sets of them that a request leaves the choice among.
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

/* Adds a device, which is closed with the others: makes its staging. 0, or a negative errno and a fault; the device
 * stays the caller's then. */
int devices_add(struct devices *devices, struct device *device, struct device_fault *ret_fault);

/* Closes all. Every slot was given back, every arena freed. */
void devices_close(struct devices *devices);

/* This machine's memory, which there always is. */
struct device *devices_host(const struct devices *devices);

/* Which loads get the slots of a device of this set. */
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

/* Both have the same devices; or at least one in common. */
bool device_set_equal(const struct device_set *a, const struct device_set *b);
bool device_set_overlap(const struct device_set *a, const struct device_set *b);
