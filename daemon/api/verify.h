/* Reads a resident model's file again, decodes it on the CPU, and compares with what the device holds.
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

/* Tells those who wait how far it is. Called several times a second. */
void verifies_report(struct verifies *verifies);

/* Ends all early; the calls are failed with `error`. */
void verifies_end(struct verifies *verifies, enum wire_error error);
