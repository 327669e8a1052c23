/* Every method of io.rocmforge has a handler here: X(name, function). */
#pragma once

#include "daemon/conn.h"

#define METHODS(X)                                                                                                     \
    X(Load, method_load)                                                                                               \
    X(Unload, method_unload)                                                                                           \
    X(Cancel, method_cancel)                                                                                           \
    X(List, method_list)                                                                                               \
    X(Plan, method_plan)                                                                                               \
    X(Pin, method_pin)                                                                                                 \
    X(Unpin, method_unpin)                                                                                             \
    X(SetTtl, method_set_ttl)                                                                                          \
    X(Show, method_show)                                                                                               \
    X(Attach, method_attach)                                                                                           \
    X(Detach, method_detach)                                                                                           \
    X(Verify, method_verify)                                                                                           \
    X(Devices, method_devices)                                                                                         \
    X(Status, method_status)                                                                                           \
    X(Watch, method_watch)

struct server;

#define X(name, function) void function(struct server *server, struct call *call);
METHODS(X)
#undef X
