#include "daemon/api/load_param.h"

#include "daemon/api/forms_param.h"
#include "daemon/base/trust.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <string.h>

/* The name of the first parameter with an invalid value; NULL: all are valid. */
static const char *wrong_parameter(const struct load_param *p, enum form *ret_form)
{
    if (!!p->fds == !!p->path)
        return "fds";
    if (p->path && p->path[0] != '/')
        return "path";
    if (p->name && model_name_check(p->name) < 0)
        return "name";
    if (forms_word_parse(p->form, ret_form) < 0)
        return "form";
    if (strcmp(p->dequant, "auto") != 0 && strcmp(p->dequant, "cpu") != 0 && strcmp(p->dequant, "gpu") != 0)
        return "dequant";
    if (p->private && p->public)
        return "public";
    return NULL;
}

/* Which devices the model may go to. Returns false after the call was failed. */
static bool choose(struct api *api, struct call *call, const struct load_param *p, struct device_set *ret)
{
    if (devices_named(api->devices, p->device, ret) == 0)
        call_fail(call, WIRE_DeviceNotFound, error_device(p->device, NULL));
    else if (strcmp(p->dequant, "gpu") == 0 && device_is_host(ret->devices[0]))
        call_fail(call, WIRE_DeviceNotFound, error_device("gpu", "host memory has no GPU to decode with"));
    else
        return true;
    return false;
}

/* Returns false after the call was failed. */
static bool layout_read(struct call *call, const struct load_param *p, const struct layout **ret)
{
    const char *parameter;
    const int r = layout_new(p->layout, p->groups, p->tp, ret, &parameter);
    if (r == -EINVAL)
        call_fail_parameter(call, parameter);
    else if (r == -E2BIG)
        call_fail(call, WIRE_LimitExceeded, error_limit("groups", LAYOUT_GROUPS_MAX));
    else if (r < 0)
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
    return r == 0;
}

bool load_param_request(struct api *api, struct call *call, const struct load_param *param, struct load_request *ret)
{
    const uid_t uid = conn_uid(call->conn);
    struct load_request request = {
        .path = param->path,
        .name = param->name,
        .decode_on_cpu = strcmp(param->dequant, "cpu") == 0,
        .peer = conn_peer(call->conn),
        .uid = uid,
        .trusted = trusted_user(uid),
        .access = param->private  ? ACCESS_PRIVATE
                  : param->public ? ACCESS_PUBLIC
                                  : ACCESS_READERS,
        .replace = param->replace ? REPLACE_NAME : REPLACE_STALE,
    };
    enum form form = FORM_AUTO;
    const char *wrong = wrong_parameter(param, &form);
    if (wrong) {
        call_fail_parameter(call, wrong);
        return false;
    }
    if (!choose(api, call, param, &request.among) || !forms_param_read(call, form, param->forms, &request.forms))
        return false;
    if (!layout_read(call, param, &request.layout)) {
        forms_unref(request.forms);
        return false;
    }
    *ret = request;
    return true;
}
