#include "daemon/memory/choice.h"

#include "daemon/model/registry.h"
#include "daemon/memory/residency.h"
#include "daemon/server.h"

#include <string.h>

static bool is_host(const struct device *device)
{
    return strcmp(device->kind, "host") == 0;
}

static bool named(const struct device *device, const char *name)
{
    return strcmp(device->id, name) == 0 || strcmp(device->kind, name) == 0 ||
           (strcmp(name, "auto") == 0 && !is_host(device));
}

static void add_named(const struct server *server, const char *name, bool lost, struct choice *choice)
{
    for (size_t i = 0; i < server->n_devices; i++)
        if (server->devices[i]->failed == lost && named(server->devices[i], name))
            choice->devices[choice->n++] = server->devices[i];
}

size_t choice_of(const struct server *server, const char *name, struct choice *ret)
{
    *ret = (struct choice){0};
    add_named(server, name, false, ret);
    if (ret->n == 0 && strcmp(name, "auto") == 0)
        add_named(server, "host", false, ret);
    if (ret->n == 0)
        add_named(server, name, true, ret);
    return ret->n;
}

bool choice_equal(const struct choice *a, const struct choice *b)
{
    return a->n == b->n && memcmp(a->devices, b->devices, a->n * sizeof(struct device *)) == 0;
}

bool choice_overlap(const struct choice *a, const struct choice *b)
{
    for (size_t i = 0; i < a->n; i++)
        if (choice_has(b, a->devices[i]))
            return true;
    return false;
}

bool choice_has(const struct choice *choice, const struct device *device)
{
    for (size_t i = 0; i < choice->n; i++)
        if (choice->devices[i] == device)
            return true;
    return false;
}

/* What a load could get there now, as far as is known. */
static uint64_t room(const struct device *device)
{
    const uint64_t available = device_available(device);
    return available < device->free ? available : device->free;
}

struct device *choice_roomiest(const struct choice *choice)
{
    struct device *best = NULL;
    for (size_t i = 0; i < choice->n; i++) {
        struct device *device = choice->devices[i];
        if (!device->failed && (!best || room(device) > room(best)))
            best = device;
    }
    return best;
}

/* A plan that was cut for one, or would be, can be filled on the other. */
static bool alike(struct device *device, struct device *first, const struct plan *plan)
{
    const bool by_cpu = plan->chunks ? !plan->verbatim : !plan_decoded_by(plan, first);
    return device == first || (device->slot_bytes == first->slot_bytes && device->part_bytes == first->part_bytes &&
                               device->granule == first->granule && (by_cpu || plan_decoded_by(plan, device)));
}

/* 2: it fits, 1: it would if others were evicted, or will when they are gone, 0: it does not. */
static int fits(const struct server *server, const struct device *device, uint64_t bytes)
{
    if (bytes <= room(device))
        return 2;
    return bytes <=
           device_available(device) + residency_evictable(server, device) + residency_departing(server, device);
}

struct device *choice_place(const struct server *server, const struct choice *choice, struct device *first,
                            const struct plan *plan)
{
    struct device *best = NULL;
    int best_fits = 0;
    for (size_t i = 0; i < choice->n; i++) {
        struct device *device = choice->devices[i];
        if (device->failed || !alike(device, first, plan))
            continue;
        const int now = fits(server, device, plan->arena_bytes);
        if (!best || now > best_fits || (now == best_fits && room(device) > room(best))) {
            best = device;
            best_fits = now;
        }
    }
    return best ? best : first;
}
