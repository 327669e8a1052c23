#include "daemon/device/devices.h"

#include "daemon/device/spare.h"
#include "daemon/device/staging.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

const char *const device_kinds[] = {"hip", "cuda", DEVICE_HOST, NULL};

int devices_add(struct devices *devices, struct device *device, struct device_fault *ret_fault)
{
    if (devices->n == DEVICES_MAX)
        return device_fault_set(ret_fault, -ENOSPC, "devices_add", 0, "too many devices");
    pthread_mutex_init(&device->spares.lock, NULL);
    int r = staging_new(device, &device->staging, ret_fault);
    if (r < 0)
        return r;
    r = scheduler_new(device, &devices->schedulers[devices->n]);
    if (r < 0) {
        staging_free(device->staging);
        device->staging = NULL;
        return device_fault_set(ret_fault, r, "scheduler_new", 0, "no memory");
    }
    devices->devices[devices->n++] = device;
    return 0;
}

int devices_join(struct devices *devices, struct devices *first)
{
    const size_t n = first->n;
    if (n > DEVICES_MAX - devices->n)
        return -ENOSPC;
    memmove(&devices->devices[n], devices->devices, devices->n * sizeof(devices->devices[0]));
    memmove(&devices->schedulers[n], devices->schedulers, devices->n * sizeof(devices->schedulers[0]));
    memcpy(devices->devices, first->devices, n * sizeof(devices->devices[0]));
    memcpy(devices->schedulers, first->schedulers, n * sizeof(devices->schedulers[0]));
    devices->n += n;
    first->n = 0;
    return 0;
}

void devices_close(struct devices *devices)
{
    for (size_t i = 0; i < devices->n; i++) {
        if (atomic_load(&devices->devices[i]->hung))
            continue; /* its driver would be called */
        device_spares_drop(devices->devices[i]);
        scheduler_free(devices->schedulers[i]);
        staging_free(devices->devices[i]->staging);
        devices->devices[i]->ops->close(devices->devices[i]);
    }
    devices->n = 0;
}

struct device *devices_host(const struct devices *devices)
{
    return devices->devices[devices->n - 1];
}

struct scheduler *devices_scheduler(const struct devices *devices, const struct device *device)
{
    for (size_t i = 0; i < devices->n; i++)
        if (devices->devices[i] == device)
            return devices->schedulers[i];
    assert(!"a device of this set");
    return NULL;
}

static bool is_named(const struct device *device, const char *name)
{
    return strcmp(device->id, name) == 0 || strcmp(device->kind, name) == 0 ||
           (strcmp(name, "auto") == 0 && !device_is_host(device));
}

static void add_named(const struct devices *devices, const char *name, bool lost, struct device_set *set)
{
    for (size_t i = 0; i < devices->n; i++)
        if (devices->devices[i]->failed == lost && is_named(devices->devices[i], name))
            set->devices[set->n++] = devices->devices[i];
}

size_t devices_named(const struct devices *devices, const char *name, struct device_set *ret)
{
    *ret = (struct device_set){0};
    add_named(devices, name, false, ret);
    if (ret->n == 0 && strcmp(name, "auto") == 0)
        add_named(devices, DEVICE_HOST, false, ret);
    if (ret->n == 0)
        add_named(devices, name, true, ret);
    return ret->n;
}

bool device_set_has(const struct device_set *set, const struct device *device)
{
    for (size_t i = 0; i < set->n; i++)
        if (set->devices[i] == device)
            return true;
    return false;
}

bool device_set_equal(const struct device_set *a, const struct device_set *b)
{
    return a->n == b->n && memcmp(a->devices, b->devices, a->n * sizeof(struct device *)) == 0;
}

bool device_set_overlap(const struct device_set *a, const struct device_set *b)
{
    for (size_t i = 0; i < a->n; i++)
        if (device_set_has(b, a->devices[i]))
            return true;
    return false;
}
