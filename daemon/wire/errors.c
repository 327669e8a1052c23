#include "daemon/wire/errors.h"

#include "daemon/base/json_text.h"

#include <errno.h>
#include <sys/resource.h>

cJSON *error_limit(const char *limit, uint64_t value)
{
    cJSON *object = json_object_with("limit", limit);
    cJSON_AddNumberToObject(object, "value", (double)value);
    return object;
}

cJSON *error_quota(int error, enum quota_kind kind, uint64_t limit)
{
    return error == -EDQUOT ? error_limit(quota_name(kind), limit) : error_no_memory();
}

cJSON *error_no_memory(void)
{
    return error_limit("memory", 0);
}

cJSON *error_no_descriptors(void)
{
    struct rlimit limit = {0};
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    return error_limit("descriptors", limit.rlim_cur);
}

cJSON *error_name(const char *name)
{
    return json_object_with("name", name);
}

cJSON *error_reason(const char *reason)
{
    return json_object_with("reason", reason);
}

cJSON *error_device(const char *device, const char *reason)
{
    cJSON *object = json_object_with("device", device);
    if (reason)
        json_add_text(object, "reason", reason);
    return object;
}
