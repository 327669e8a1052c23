/* Parameters of errors that need no model: what the wire itself, and many methods, answer with.
 *
 * Any thread. Results are the caller's. */
#pragma once

#include "daemon/base/quota.h"

#include <cjson/cJSON.h>
#include <stdint.h>

/* Of LimitExceeded. */
cJSON *error_limit(const char *limit, uint64_t value);

/* Of LimitExceeded, for an error of quota_take(): -EDQUOT and the limit, or -ENOMEM. */
cJSON *error_quota(int error, enum quota_kind kind, uint64_t limit);

/* Of LimitExceeded where memory for the daemon itself is short. */
cJSON *error_no_memory(void);

/* Of LimitExceeded where this process may have no more descriptors. */
cJSON *error_no_descriptors(void);

/* Of ModelNotFound and NameInUse. */
cJSON *error_name(const char *name);

/* Of InvalidMessage and PermissionDenied: a sentence. */
cJSON *error_reason(const char *reason);

/* Of DeviceNotFound. reason: why it is not there; NULL: the name says it. */
cJSON *error_device(const char *device, const char *reason);
