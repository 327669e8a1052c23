#include "daemon/device.h"

#include <stdio.h>

const char *export_kind_name(enum export_kind kind)
{
    switch (kind) {
    case EXPORT_MEMFD:
        return "memfd";
    case EXPORT_IPC:
        return "ipc";
    case EXPORT_FD:
        return "fd";
    }
    return "unknown";
}

int device_fault_set(struct device_fault *fault, int error, const char *call, int code, const char *text)
{
    if (fault) {
        snprintf(fault->call, sizeof(fault->call), "%s", call);
        snprintf(fault->text, sizeof(fault->text), "%s", text ? text : "");
        fault->code = code;
    }
    return error;
}
