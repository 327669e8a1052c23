/* Chooses a device for a model, from several.
 *
 * Loop thread only. */
#pragma once

#include "daemon/device/devices.h"
#include "daemon/memory/residency.h"
#include "daemon/model/plan.h"

/* The device with the most available memory, by the ledger and by the driver's last answer. NULL if all devices are
 * lost. */
struct device *device_choice_roomiest(const struct device_set *set);

/* Chooses the device for a planned model. Prefers devices where the model fits now; then devices where it fits after
 * evictions, or when memory that is being freed is back. Of these, takes the one with the most free memory, by the
 * ledger and by the driver. If there is none, returns `first`. first: the device that the plan was made for; only
 * devices that can use the same plan count. ahead: for each device of the set, the bytes that earlier loads wait
 * for. */
struct device *device_choose(const struct residency *residency, const struct device_set *set, struct device *first,
                             const struct plan *plan, const uint64_t *ahead);
