#include "daemon/device/awaited.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct awaited {
    struct device device; /* first, so that one can be cast to the other */
    char kind[16];
};

struct arena {
    int fd;
};

static void awaited_free(struct device *device)
{
    pthread_mutex_destroy(&device->spares.lock);
    free(device);
}

static int arena_adopt(struct device *device, int fd, uint64_t bytes, struct arena **ret,
                       struct device_export *ret_export, struct device_fault *ret_fault)
{
    (void)device, (void)bytes;
    struct arena *arena = malloc(sizeof(*arena));
    if (!arena)
        return device_fault_set(ret_fault, -ENOMEM, "malloc", ENOMEM, strerror(ENOMEM));
    arena->fd = fd;
    *ret = arena;
    *ret_export = (struct device_export){.fd = fd};
    return 0;
}

static void arena_free(struct arena *arena)
{
    if (!arena)
        return;
    close(arena->fd);
    free(arena);
}

static int memory_free(struct device *device, uint64_t *ret, struct device_fault *ret_fault)
{
    (void)device, (void)ret;
    return device_fault_set(ret_fault, -EAGAIN, "memory_free", 0, "the driver has not started yet");
}

static bool decodes(struct device *device, const struct tensor_type *type, enum form form)
{
    (void)device, (void)type, (void)form;
    return false;
}

static const struct device_ops awaited_ops = {
    .close = awaited_free,
    .arena_adopt = arena_adopt,
    .arena_free = arena_free,
    .memory_free = memory_free,
    .decodes = decodes,
};

bool device_is_awaited(const struct device *device)
{
    return device->ops == &awaited_ops;
}

bool device_same(const struct device *device, const char *kind, const char *uuid, const char *pci, const char *id)
{
    if (strcmp(device->kind, kind) != 0 || strcmp(device->uuid, uuid) != 0 || strcmp(device->pci, pci) != 0)
        return false;
    return device->uuid[0] || strcmp(device->id, id) == 0;
}

static struct device *awaited_new(const struct awaited_gpu *gpu)
{
    struct awaited *awaited = calloc(1, sizeof(*awaited));
    if (!awaited)
        return NULL;
    struct device *device = &awaited->device;
    snprintf(awaited->kind, sizeof(awaited->kind), "%s", gpu->kind);
    snprintf(device->id, sizeof(device->id), "%s", gpu->id);
    snprintf(device->name, sizeof(device->name), "%s", gpu->name);
    snprintf(device->uuid, sizeof(device->uuid), "%s", gpu->uuid);
    snprintf(device->pci, sizeof(device->pci), "%s", gpu->pci);
    device->ops = &awaited_ops;
    device->kind = awaited->kind;
    device->export_kind = EXPORT_FD;
    device->total = gpu->total;
    device->budget = gpu->budget;
    device->granule = gpu->granule;
    device->link = gpu->link;
    pthread_mutex_init(&device->spares.lock, NULL);
    return device;
}

struct device *awaited_get(struct awaited_gpus *gpus, const struct awaited_gpu *gpu)
{
    for (size_t i = 0; i < gpus->n; i++)
        if (device_same(gpus->devices[i], gpu->kind, gpu->uuid, gpu->pci, gpu->id))
            return gpus->devices[i];
    struct device *device = gpus->n < DEVICES_MAX ? awaited_new(gpu) : NULL;
    if (device)
        gpus->devices[gpus->n++] = device;
    return device;
}

void awaited_close(struct awaited_gpus *gpus)
{
    while (gpus->n > 0)
        awaited_free(gpus->devices[--gpus->n]);
}
