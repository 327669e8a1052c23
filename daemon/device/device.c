#include "daemon/device/device.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

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

uint64_t device_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
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

bool device_is_host(const struct device *device)
{
    return strcmp(device->kind, DEVICE_HOST) == 0;
}

uint64_t device_available(const struct device *device)
{
    return !device->failed && device->budget > device->used ? device->budget - device->used : 0;
}
