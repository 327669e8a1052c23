/* Decides which models stay in memory: evicts models to make room for new ones, unloads models that were idle for too
 * long, and keeps copies in host memory of models that a GPU has no room for.
 *
 * The memory of a model is never freed while a lease on it lives, or while the daemon itself reads it.
 *
 * If a device is lost, its models keep only what is in host memory: header, plan and publication. Clients still see
 * such a model for as long as they would see an idle one, or until its name is needed.
 *
 * Loop thread only. */
#pragma once

#include "daemon/base/core.h"
#include "daemon/device/devices.h"
#include "daemon/memory/admission.h"
#include "daemon/memory/host_cache.h"
#include "daemon/memory/spared.h"
#include "daemon/model/registry.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct call;
struct events;

struct residency {
    struct core *core;
    struct devices *devices;
    struct registry *registry;
    struct events *events;
    struct host_cache cache; /* its size and lock_memory are the caller's to set */
    struct spared spared;    /* arenas of unloaded models; its keep_ns is the caller's to set */
    /* Unloads models that were idle for too long, and takes the names of models that drain too long. */
    uv_timer_t reaper;

    /* Set by the module that keeps models when the daemon restarts; both may be NULL. `leaves` is called when the
     * memory of a model will be freed. It returns true if another process has this memory too; it has asked that
     * process to give it up. Then `left` is called on a worker before the memory is freed, and returns when the other
     * process has given it up. */
    bool (*leaves)(void *keeper, const struct model *model);
    void (*left)(void *keeper);
    void *keeper;

    /* Set by the owner. Called when memory or a name became free, or may be freed now. Then those who wait for one try
     * again. */
    void (*freed)(void *context);
    void *context;
};

/* A load that waits until other models are unloaded for it. The claim must not move in memory until n_victims is 0. */
struct claim {
    unsigned n_victims;                   /* models that are being unloaded for it */
    void (*granted)(struct claim *claim); /* called when the last of these models is gone */
};

/* The caller has set core, devices, registry and events. 0 or a negative errno. */
int residency_init(struct residency *residency);

/* No unload may be running. The loop closes the timer later, so the struct must live until then. */
void residency_close(struct residency *residency);

/* Reserves want->bytes for the model in the device's ledger, and evicts other models if needed. Nothing is evicted if
 * the evictions would not free enough. The claim counts the evicted models, and `granted` is called when their memory
 * is free, even if this function fails after it began an eviction. Returns what admission_choose() returns. */
int residency_reserve(struct residency *residency, struct claim *claim, struct model *model,
                      const struct admission_want *want, struct room_shortage *ret_shortage);

/* For a model that fits by the ledger, but whose memory the driver could not allocate. Evicts other models that
 * together have at least `needed` bytes of the device, if possible. Returns how many models are evicted, which the
 * claim counts; 0: no eviction is possible. */
unsigned residency_make_room(struct residency *residency, struct claim *claim, struct device *device, uint64_t needed);

/* A use of the model has ended, or its pin or its time to live has changed. Unloads the model if it drains and is not
 * in use any more, or, a moment later, if its time to live is over. A cached model may be gone after this: a load that
 * waits may need the memory of its copy. */
void residency_idle(struct residency *residency, struct model *model);

/* Frees a model's memory and removes the model from the registry. The model must not be in use. `call`, unless NULL, is
 * answered when this is done. */
void residency_unload(struct residency *residency, struct model *model, struct call *call);

/* Grants no more leases; the memory goes when the last one does. Those who hold one are told; those who do not let go
 * are named in the journal. seconds: after which the model loses its name (model_lose_name()), so that another may have
 * it; 0: never. If it drains already, the earlier end holds. */
void residency_drain(struct residency *residency, struct model *model, double seconds);

/* The device is lost: its models become FAILED, and clients that watch are told. */
void residency_lose_device(struct residency *residency, struct device *device);

/* Callbacks for struct registry: a lease on the model has ended; the model's device was lost. The context is the
 * residency. */
void residency_lease_ended(void *residency, struct model *model);
void residency_model_failed(void *residency, struct model *model);
