/* Which models stay in memory: makes room for those that come, lets go of those that nobody wants any more, and keeps a
 * copy in host memory of what a GPU has no room for.
 *
 * Memory with a live lease is never freed, nor is a model that the daemon itself reads.
 *
 * Of a model whose device is lost there is left what the host keeps, its header and the like. It stays to be seen for
 * as long as an idle one would, or until its name is wanted. Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/memory/admission.h"
#include "daemon/model/registry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct call;
struct events;

struct residency {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct events *events;
    uint64_t cache_size; /* of host memory for models that a GPU has no room for */
    uint64_t cache_used; /* its ledger */
    uv_timer_t reaper;   /* unloads what has been idle for too long, and ends drains that took too long */

    /* The owner's: memory, or a name, was given back, or may be now. Whoever waits for some looks again. */
    void (*freed)(void *context);
    void *context;
};

/* What somebody waits for whose memory others have to go for. Stays where it is until no victim is left. */
struct claim {
    unsigned n_victims;                   /* models that go for it, and are not gone yet */
    void (*granted)(struct claim *claim); /* called when the last of them is gone */
};

/* `residency` has its first part set. 0 or a negative errno. */
int residency_init(struct residency *residency);

/* No unload is under way. The loop lets go of the timer later. */
void residency_close(struct residency *residency);

/* Enters what is wanted for the model into the ledgers, evicting others if need be; nothing is evicted unless that
 * suffices. Those who go are counted in the claim, which is granted when their memory is free, also where this fails in
 * the end. Returns what admission_choose() does. */
int residency_reserve(struct residency *residency, struct claim *claim, struct model *model,
                      const struct admission_want *want, struct room_shortage *ret_shortage);

/* A model that the ledger had room for was not given its memory: evicts others that together have at least `needed`
 * bytes of the device's, if that can be. Returns how many go, which the claim counts; 0: none may. */
unsigned residency_make_room(struct residency *residency, struct claim *claim, struct device *device, uint64_t needed);

/* Something that kept the model in use has ended, or its pin or time to live changed: it is unloaded if it drains, or
 * if its time is over. */
void residency_idle(struct residency *residency, struct model *model);

/* Frees a model's memory and takes it out of the registry; nobody uses it. `call`, unless NULL, is answered then. */
void residency_unload(struct residency *residency, struct model *model, struct call *call);

/* Grants no more leases; the memory goes when the last one does. Those who hold one are told; those who do not let go
 * are named in the journal. seconds: after which the model loses its name (model_lose_name()), so that another may have
 * it; 0: never. If it drains already, the earlier end holds. */
void residency_drain(struct residency *residency, struct model *model, double seconds);

/* The device is lost: its models fail, and those who watch are told. */
void residency_lose_device(struct residency *residency, struct device *device);

/* For struct registry: a lease on the model has ended; its device was lost. The context is the residency. */
void residency_lease_ended(void *residency, struct model *model);
void residency_model_failed(void *residency, struct model *model);

/* Frees the copy in host memory. Fine if there is none. */
void residency_cache_drop(struct residency *residency, struct model *model);

/* Takes a cached model out of the registry. */
void residency_forget(struct residency *residency, struct model *model);
