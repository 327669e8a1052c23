/* Every method of io.rocmforge, with its handler: X(name, function). */
#pragma once

#include "daemon/api/api.h"

/* Methods that change something. A call that wants no reply (oneway) runs them too. */
#define METHODS_THAT_ACT(X)                                                                                            \
    X(AddFiles, method_add_files)                                                                                      \
    X(Load, method_load)                                                                                               \
    X(Unload, method_unload)                                                                                           \
    X(Cancel, method_cancel)                                                                                           \
    X(Pin, method_pin)                                                                                                 \
    X(Unpin, method_unpin)                                                                                             \
    X(SetTtl, method_set_ttl)                                                                                          \
    X(Attach, method_attach)                                                                                           \
    X(Reattach, method_reattach)                                                                                       \
    X(Detach, method_detach)                                                                                           \
    X(Create, method_create)                                                                                           \
    X(Publish, method_publish)

/* Methods that are called for their reply. A call that wants no reply (oneway) does not run them. */
#define METHODS_FOR_A_REPLY(X)                                                                                         \
    X(Plan, method_plan)                                                                                               \
    X(List, method_list)                                                                                               \
    X(Show, method_show)                                                                                               \
    X(Verify, method_verify)                                                                                           \
    X(Devices, method_devices)                                                                                         \
    X(Metrics, method_metrics)                                                                                         \
    X(Status, method_status)                                                                                           \
    X(Watch, method_watch)

#define METHODS(X)        METHODS_THAT_ACT(X) METHODS_FOR_A_REPLY(X)

#define X(name, function) void function(struct api *api, struct call *call);
METHODS(X)
#undef X
