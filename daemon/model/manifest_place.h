/* Where the tensors of a manifest are in its memory, and how large the memory is.
 *
 * Any thread. */
#pragma once

#include "daemon/model/manifest.h"

/* The offset of a tensor that has none yet. */
#define MANIFEST_NOWHERE UINT64_MAX

/* The memory that a client asked for. */
struct manifest_room {
    uint64_t bytes;   /* 0: as many as the tensors need */
    uint64_t granule; /* a power of two; the arena's size is rounded up to a multiple of it */
};

/* Refuses a name that stands twice, places the tensors that have no offset behind those that have one, and sizes the
 * plan's arena. Then finds the tensors that begin within others: sets their flags, and model_bytes, for which bytes
 * that tensors share count once. The parts have the header's tensors, and the plan's places with what the client
 * said. -EBADMSG and the fault: a tensor does not lie within the memory, or two have one name, or there is too much;
 * -ENOMEM. */
int manifest_place(struct manifest_parsed *parts, const struct manifest_room *room, struct manifest_fault *fault);

/* Sets the fault. tensor: its number in the list; SIZE_MAX: of none. Returns -EBADMSG. */
int manifest_refuse(struct manifest_fault *fault, size_t tensor, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
