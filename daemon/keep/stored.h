/* What the store has of one model: its memory, its headers, its files, and the last description of it.
 *
 * Loop thread only. */
#pragma once

#include "daemon/keep/description.h"
#include "daemon/keep/store.h"
#include "daemon/keep/store_room.h"
#include "daemon/model/model.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct stored {
    TAILQ_ENTRY(stored) link; /* the owner's */
    struct model *model;      /* whose `stored` points back to this */
    uint64_t key;             /* in the names of all its descriptors */
    uint64_t print;           /* of what its description says and may change; 0: it was not described yet */
    uint32_t sequence;        /* number of its description; 0: there is none */
    uint32_t next_number;     /* for the descriptor of a file */
    size_t n_headers;         /* headers; 0: nothing is in the store yet */
    size_t n_files;
    struct description_file *files;
    struct store_room *room; /* borrowed */
    struct store_charge charge;
    bool waits; /* for room: the store does not have what the model is now */
};

/* The store has nothing of this model yet. room: outlives the struct. NULL: no memory, or no random number for the
 * key. */
struct stored *stored_new(struct model *model, struct store_room *room);

/* The store has this model from before a restart. Removes those of its `n` entries from the store that the model does
 * not need. latest: the entry of the description. NULL: no memory; then nothing was done. */
struct stored *stored_again(struct model *model, struct store_room *room, const struct description *description,
                            const struct store_entry *latest, const struct store_entry *entries, size_t n);

/* Brings the store up to date, if the description would say something else now. If that fails, the journal says so, the
 * store has what it had before, and it is tried again when the model changes. If there was no room, `waits` is set: the
 * caller calls this again when some has become free. */
void stored_update(struct stored *stored);

/* Removes all from the store, and frees the struct. */
void stored_remove(struct stored *stored);

/* Frees the struct. The store stays as it is. */
void stored_free(struct stored *stored);
