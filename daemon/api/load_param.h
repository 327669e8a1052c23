/* The parameters that Load and Plan share: which file, in which forms, on which device, for whom.
 *
 * Loop thread only. */
#pragma once

#include "daemon/api/api.h"
#include "daemon/wire/call.h"
#include "daemon/wire/params.h"

#include <stddef.h>

struct load_param {
    const cJSON *fds, *forms;
    const char *path, *name, *form, *device, *dequant;
    bool private, public;
    int64_t added;
};

#define LOAD_PARAM_DEFAULTS                                                                                            \
    {                                                                                                                  \
        .form = "auto", .device = "auto", .dequant = "auto"                                                            \
    }

/* Entries for params_read(). `at`: where the struct load_param is in what it fills. */
#define LOAD_PARAM_TABLE(at)                                                                                           \
    {"fds", PARAM_INTS, false, (at) + offsetof(struct load_param, fds)},                                               \
        {"added", PARAM_INT, false, (at) + offsetof(struct load_param, added)},                                        \
        {"path", PARAM_STRING, false, (at) + offsetof(struct load_param, path)},                                       \
        {"name", PARAM_STRING, false, (at) + offsetof(struct load_param, name)},                                       \
        {"form", PARAM_STRING, false, (at) + offsetof(struct load_param, form)},                                       \
        {"forms", PARAM_ARRAY, false, (at) + offsetof(struct load_param, forms)},                                      \
        {"device", PARAM_STRING, false, (at) + offsetof(struct load_param, device)},                                   \
        {"dequant", PARAM_STRING, false, (at) + offsetof(struct load_param, dequant)},                                 \
        {"private", PARAM_BOOL, false, (at) + offsetof(struct load_param, private)},                                   \
    {                                                                                                                  \
        "public", PARAM_BOOL, false, (at) + offsetof(struct load_param, public)                                        \
    }

/* Checks them, and makes a request of them. The descriptors are not looked at: see files_param.h. Strings of the
 * request are the call's, and its peer the connection's; all that the parameters do not tell is zero. Returns true, and
 * the caller ends request->forms with forms_unref(); or false after the call was failed. */
bool load_param_request(struct api *api, struct call *call, const struct load_param *param, struct load_request *ret);
