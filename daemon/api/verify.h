/* Reads a resident model's file again, or another that may be the same, decodes it on the CPU, and compares with what
 * the device holds. The header is compared too, unless nobody touched the file.
 *
 * The model is held meanwhile: it is not unloaded. Loop thread only. */
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
    TAILQ_HEAD(verify_list, verify) list; /* who waits the longest for a worker comes first */
    size_t n_jobs;                        /* on workers */
};

/* `verifies` has its first part set. */
void verifies_init(struct verifies *verifies);

/* Begins one; the call is answered when it is over. Its user is charged for it meanwhile. */
void verify_begin(struct verifies *verifies, struct model *model, struct call *call);

/* Begins one without a call: whether these files have all the bytes that the model was made of. The source is kept.
 * moves: if they have, and are other files, they are the model's from then on.
 * `done` is called later: with true if all were compared and are the same; else, also if something kept them from being
 * compared, with false. -ENOMEM. */
int verify_compare(struct verifies *verifies, struct model *model, struct source *source, bool moves,
                   void (*done)(void *context, bool same), void *context);

/* Tells those who wait how far it is. Called several times a second. */
void verifies_report(struct verifies *verifies);

/* Ends all early; the calls are failed with `error`. */
void verifies_end(struct verifies *verifies, enum wire_error error);
