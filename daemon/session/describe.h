/* Makes the JSON types of the interface from the daemon's own structs.
 *
 * Loop thread only. The caller owns the results. */
#pragma once

#include "daemon/device/device.h"
#include "daemon/model/model.h"

#include <cjson/cJSON.h>
#include <stdint.h>

/* How far a load or a verification is. */
struct progress {
    uint64_t done; /* bytes of the file */
    uint64_t total;
    uint64_t elapsed_ns;
};

/* The time that each phase of a load took; `Phases` in the interface. total_ns is 0 until the load is over. */
struct phases {
    uint64_t total_ns;
    uint64_t parse_ns;
    uint64_t allocate_ns;
    uint64_t read_ns;
    uint64_t decode_ns;
    uint64_t copy_ns;
    uint64_t kernel_ns;
};

/* peer: who is told. The names in these are those by which the model is called to it (calling.h). */
cJSON *describe_model(const struct model *model, const struct peer *peer);

/* The same for a list of models: without long lists of rules and groups, which may be a quarter of a MiB for each
 * model. `formsLeft` and `groupsLeft` tell how many these are. */
cJSON *describe_model_brief(const struct model *model, const struct peer *peer);

/* The same for what is told to many: to peers to which these names mean the model. */
cJSON *describe_model_called(const struct model *model, uint32_t names);

cJSON *describe_device(const struct device *device);

/* At most DESCRIBE_LEASES_MAX of them, the latest: a model may have thousands, and the loop makes the list. */
#define DESCRIBE_LEASES_MAX 1000u
cJSON *describe_leases(const struct model *model, const struct peer *peer);

/* Replies of Load: when it is over (phases may be NULL), and before. */
cJSON *describe_loaded(const struct model *model, const struct phases *phases, const struct peer *peer);

/* Adds the phases of the model's load to a reply. */
void describe_phases(cJSON *reply, const struct model *model, const struct phases *phases);
/* names: as in describe_model_called(). */
cJSON *describe_loading(const struct model *model, const struct progress *progress, uint32_t names);
cJSON *describe_progress(const char *state, const struct progress *progress);

/* Parameters of errors; others are in wire/errors.h. call: the operation that fails. */
cJSON *describe_device_lost(const struct device *device, const char *call);
cJSON *describe_busy(const struct model *model, const struct peer *peer);
cJSON *describe_unsupported(const struct header_tensor *tensor);
cJSON *describe_out_of_memory(const struct device *device, uint64_t needed, uint64_t available, uint64_t evictable);

/* The reply of Unload. */
cJSON *describe_state(const char *state);
