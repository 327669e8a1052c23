/* The parameters that Load and Plan share: which file, in which forms, on which device, for whom.
 *
 * Loop thread only. */
#pragma once

#include "daemon/api/api.h"
#include "daemon/wire/call.h"
#include "daemon/wire/params.h"

#include <stddef.h>

struct load_param {
    const cJSON *fds, *forms, *groups, *tp;
    const char *path, *name, *form, *layout, *device, *dequant;
    bool private, public, replace;
    int64_t added;
};

#define LOAD_PARAM_DEFAULTS                                                                                            \
    {                                                                                                                  \
        .form = "auto", .device = "auto", .dequant = "auto"                                                            \
    }

/* Entries for params_read(). at: offset of the struct load_param in the struct that params_read() fills. */
#define LOAD_PARAM_TABLE(at)                                                                                           \
    LOAD_PARAM_ENTRY(at, fds, PARAM_INTS), LOAD_PARAM_ENTRY(at, added, PARAM_INT),                                     \
        LOAD_PARAM_ENTRY(at, path, PARAM_STRING), LOAD_PARAM_ENTRY(at, name, PARAM_STRING),                            \
        LOAD_PARAM_ENTRY(at, form, PARAM_STRING), LOAD_PARAM_ENTRY(at, forms, PARAM_ARRAY),                            \
        LOAD_PARAM_ENTRY(at, layout, PARAM_STRING), LOAD_PARAM_ENTRY(at, groups, PARAM_ARRAY),                         \
        LOAD_PARAM_ENTRY(at, tp, PARAM_OBJECT), LOAD_PARAM_ENTRY(at, device, PARAM_STRING),                            \
        LOAD_PARAM_ENTRY(at, dequant, PARAM_STRING), LOAD_PARAM_ENTRY(at, private, PARAM_BOOL),                        \
        LOAD_PARAM_ENTRY(at, public, PARAM_BOOL), LOAD_PARAM_ENTRY(at, replace, PARAM_BOOL)

#define LOAD_PARAM_ENTRY(at, name, kind)                                                                               \
    {                                                                                                                  \
#name, kind, false, (at) + offsetof(struct load_param, name)                                                   \
    }

/* Checks the parameters, and makes a request from them. It does not read the descriptors: see files_param.h. The
 * request borrows its strings from the call, and its peer from the connection. Members that have no parameter here are
 * zero. Returns true, and the caller releases ret->forms with forms_unref() and ret->layout with
 * layout_unref(); or false after the call was failed. */
bool load_param_request(struct api *api, struct call *call, const struct load_param *param, struct load_request *ret);
