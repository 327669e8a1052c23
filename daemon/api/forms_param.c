#include "daemon/api/forms_param.h"

#include "daemon/wire/errors.h"

#include <errno.h>

bool forms_param_read(struct call *call, enum form form, const cJSON *rules, const struct forms **ret)
{
    int r = forms_new(form, rules, ret);
    if (r == -EINVAL)
        call_fail_parameter(call, "forms");
    else if (r < 0)
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
    return r == 0;
}
