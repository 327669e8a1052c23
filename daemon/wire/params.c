#include "daemon/wire/params.h"

#include <math.h>
#include <string.h>

/* A JSON number as an integer. False if it is none below 2^53. */
static bool integer(const cJSON *number, int64_t *ret)
{
    if (!cJSON_IsNumber(number) || !(fabs(number->valuedouble) <= 9007199254740991.0) ||
        number->valuedouble != trunc(number->valuedouble))
        return false;
    *ret = (int64_t)number->valuedouble;
    return true;
}

static bool integers(const cJSON *array)
{
    if (!cJSON_IsArray(array))
        return false;
    const cJSON *element;
    int64_t unused;
    cJSON_ArrayForEach (element, array) {
        if (!integer(element, &unused))
            return false;
    }
    return true;
}

static bool param_store(const struct param *param, const cJSON *value, void *at)
{
    switch (param->type) {
    case PARAM_STRING:
        if (!cJSON_IsString(value))
            return false;
        *(const char **)at = value->valuestring;
        return true;
    case PARAM_BOOL:
        if (!cJSON_IsBool(value))
            return false;
        *(bool *)at = cJSON_IsTrue(value);
        return true;
    case PARAM_SECONDS:
        if (!cJSON_IsNumber(value) || !(value->valuedouble >= 0))
            return false;
        *(double *)at = value->valuedouble;
        return true;
    case PARAM_INT:
        return integer(value, at);
    case PARAM_INTS:
        if (!integers(value))
            return false;
        *(const cJSON **)at = value;
        return true;
    case PARAM_ARRAY:
        if (!cJSON_IsArray(value))
            return false;
        *(const cJSON **)at = value;
        return true;
    case PARAM_OBJECT:
        if (!cJSON_IsObject(value))
            return false;
        *(const cJSON **)at = value;
        return true;
    }
    return false;
}

bool params_read(struct call *call, const struct param *table, void *ret)
{
    const cJSON *value;
    cJSON_ArrayForEach (value, call->parameters) {
        const struct param *param = table;
        while (param->name && strcmp(param->name, value->string) != 0)
            param++;
        if (!param->name || (!cJSON_IsNull(value) && !param_store(param, value, (char *)ret + param->offset))) {
            call_fail_parameter(call, value->string);
            return false;
        }
    }
    for (const struct param *param = table; param->name; param++) {
        value = cJSON_GetObjectItemCaseSensitive(call->parameters, param->name);
        if (param->required && (!value || cJSON_IsNull(value))) {
            call_fail_parameter(call, param->name);
            return false;
        }
    }
    return true;
}
