/* Arenas whose models are gone and that the driver has not got back yet.
 *
 * A driver clears memory that is freed, with the engine that copies, so a load right after an unload is slower. An
 * arena is kept for a moment instead: a load of the same size may get it, if no other process ever had a way to it; all
 * others go back to the driver when the device has nothing to do. What is kept counts as free everywhere. It is given
 * up at once when an arena does not fit otherwise, into the budget or into what the driver has.
 *
 * An arena that another process had a descriptor or a handle of is never used again. Such a process may have mapped it,
 * and no driver tells whether it still has: it would read the next model there, whoever may read that.
 *
 * Any thread; "worker": a thread that may block. */
#pragma once

#include "daemon/device/device.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The model that an arena was of, for who is told of its end. */
struct spare_origin {
    char model[192];
    uint64_t id;
};

/* Called when an arena went back to the driver, on the thread that caused it. free_before, free_after: bytes that the
 * driver had free. */
typedef void (*spare_gone_fn)(void *context, const struct device *device, const struct spare_origin *origin,
                              uint64_t bytes, uint64_t free_before, uint64_t free_after);

/* Worker. Keeps an arena of `bytes` bytes, as arena_new() was asked for, instead of freeing it. own: no other process
 * ever had a way to its memory. Returns false, and keeps nothing, if it is better freed: a load as large would not find
 * other memory, so nothing is gained, or models may not have so much. `gone`, which may be NULL, is called later. */
bool device_spare(struct device *device, struct arena *arena, uint64_t bytes, bool own,
                  const struct spare_origin *origin, spare_gone_fn gone, void *context);

/* Worker; for device_arena_new(). *ret becomes a kept arena of the same size, with its gaps cleared as arena_new()
 * does, if there is one that may be used again. Else returns false; and if an arena of so many bytes would not fit
 * beside what is kept, that is freed. */
bool device_spare_take(struct device *device, uint64_t bytes, const struct extent *gaps, size_t n_gaps,
                       struct arena **ret);

/* Worker. Frees the arenas that are kept. */
void device_spares_release(struct device *device);

/* Loop, at the end: the same, and `gone` is not called. */
void device_spares_drop(struct device *device);

/* Bytes that are kept. */
uint64_t device_spare_bytes(const struct device *device);
