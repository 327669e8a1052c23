/* Which of several devices a model goes to.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/memory/residency.h"
#include "daemon/model/plan.h"

/* The device with the most available memory, by the ledger and by the driver as it was asked last. NULL if all are
 * lost.
 */
struct device *placement_roomiest(const struct device_set *set);

/* Where a planned model goes: to the device where the most is free, by the ledger and by the driver. If it fits
 * nowhere, to one where it would fit if others were evicted, or will fit when they are gone. first: the device that the
 * plan was cut for; only devices that the same plan can fill count. ahead: for each device of
 * the set, what those wait for who came earlier. */
struct device *placement_choose(const struct residency *residency, const struct device_set *set, struct device *first,
                                const struct plan *plan, const uint64_t *ahead);
