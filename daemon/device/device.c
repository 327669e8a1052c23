#include "daemon/device/device.h"

#include "proto/min.h"

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

bool device_kind_is_host(const char *kind)
{
    return strcmp(kind, DEVICE_HOST) == 0;
}

bool device_is_host(const struct device *device)
{
    return device_kind_is_host(device->kind);
}

uint64_t device_limit(const struct device *device)
{
    if (device->failed)
        return 0;
    return device->reach > 0 ? min_u64(device->reach, device->budget) : device->budget;
}

uint64_t device_available(const struct device *device)
{
    const uint64_t limit = device_limit(device);
    uint64_t taken;
    if (__builtin_add_overflow(device->used, device->queued, &taken))
        return 0;
    return limit > taken ? limit - taken : 0;
}

uint64_t device_others(const struct device *device)
{
    const uint64_t gone = device->reach > 0 && device->reach < device->total ? device->total - device->reach : 0;
    return gone > device->cached ? gone - device->cached : 0;
}
