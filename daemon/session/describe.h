/* Writes what the daemon knows as the JSON types of the interface.
 *
 * Loop thread only. Results are the caller's. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/load/load.h"
#include "daemon/model/model.h"

#include <cjson/cJSON.h>

cJSON *describe_model(const struct model *model);
cJSON *describe_device(const struct device *device);
cJSON *describe_leases(const struct model *model);

/* Replies of Load: when it is over (phases may be NULL), and before. */
cJSON *describe_loaded(const struct model *model, const struct load_phases *phases);
cJSON *describe_loading(const struct model *model, const struct load *load);
cJSON *describe_progress(const char *state, uint64_t done, uint64_t total, uint64_t elapsed_ns);

/* Parameters of errors. */
cJSON *describe_limit(const char *limit, uint64_t value);
/* The same where this process may have no more descriptors. */
cJSON *describe_descriptors(void);
cJSON *describe_name(const char *name);
cJSON *describe_reason(const char *reason);
cJSON *describe_device_name(const char *device);
/* call: what cannot be done. */
cJSON *describe_device_lost(const struct device *device, const char *call);
cJSON *describe_busy(const struct model *model);
cJSON *describe_unsupported(const struct gguf_tensor *tensor);
cJSON *describe_out_of_memory(const struct device *device, uint64_t needed, uint64_t available, uint64_t evictable);

/* The reply of Unload. */
cJSON *describe_state(const char *state);
