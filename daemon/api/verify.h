/* Verifies a resident model: reads its files again, or other files that may have the same bytes, decodes them on the
 * CPU, and compares the result with the device's memory. The header is compared too, unless the files were not touched.
 *
 * The model is held until this is over, so it is not unloaded. Loop thread only. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/memory/residency.h"
#include "daemon/model/model.h"
#include "daemon/wire/call.h"

struct verify;

/* All verifications under way. */
struct verifies {
    struct core *core;
    struct residency *residency;
    struct quota *quota;
    TAILQ_HEAD(verify_list, verify) list; /* the one that has waited longest for a worker comes first */
    size_t n_jobs;                        /* jobs on workers, of all verifications */
};

/* The owner has set the members before `list`. */
void verifies_init(struct verifies *verifies);

/* Begins a verification. The call is answered when it is over. Until then it counts in the user's quota. */
void verify_begin(struct verifies *verifies, struct model *model, struct call *call);

/* Begins a verification without a call: do these files have the same bytes that the model was made of? It takes a
 * reference to the source. `done` is called later: with true if all bytes were compared and are the same, and then the
 * model has taken this source over, unless it equals its own; with false if bytes differ, or could not be compared.
 * Returns 0 or -ENOMEM. */
int verify_compare(struct verifies *verifies, struct model *model, struct source *source,
                   void (*done)(void *context, bool same), void *context);

/* Reports progress to the calls that wait. Called several times a second. */
void verifies_report(struct verifies *verifies);

/* Ends all verifications early. Their calls fail with `error`. */
void verifies_end(struct verifies *verifies, enum wire_error error);
