/* Memory that is shared by descriptors, as the daemon makes it: kernels/hip_share.h with the module's faults.
 *
 * Any thread; the device is current on it. Functions return 0 or what hip_result() says, and leave nothing behind after
 * an error. */
#pragma once

#include "daemon/device/hip/hip.h"

/* Allocates memory and maps it, readable and writable. It holds whatever was in it before. `bytes` is a multiple of
 * hip_share_granule(). hip_share_drop() frees it. */
int hip_share_make(struct hip_device *hip, uint64_t bytes, struct hip_share *ret, struct device_fault *ret_fault);

/* Makes a descriptor of the memory; programs that this process executes do not inherit it. The caller closes it. */
int hip_share_export(struct hip_device *hip, const struct hip_share *share, int *ret, struct device_fault *ret_fault);

/* Maps memory that another process exported, read-only: hip_share_import(). */
int hip_share_adopt(struct hip_device *hip, int fd, uint64_t bytes, struct hip_share *ret,
                    struct device_fault *ret_fault);

/* Allocates memory and frees it at once, without mapping it. An error is ignored. */
void hip_share_touch(struct hip_device *hip, uint64_t bytes);
