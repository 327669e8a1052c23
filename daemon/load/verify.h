/* Verifies a resident model: reads its files again, or other files that may have the same bytes, decodes them on the
 * CPU, and compares the result with the device's memory. The header is compared too, unless the files were not touched.
 * What stands in memory between the tensors must be zero, unless other files are compared.
 *
 * The model is held until this is over, so it is not unloaded; a cached one is not loaded back meanwhile. Loop thread
 * only. */
#pragma once

#include "daemon/base/quota.h"
#include "daemon/memory/residency.h"
#include "daemon/model/model.h"
#include "daemon/wire/call.h"

struct failure;
struct verify;

/* What a comparison found. */
enum compared {
    COMPARED_SAME,
    COMPARED_OTHER, /* the files have other bytes */
    COMPARED_NOT,   /* something kept the bytes from being compared: they may be the same */
};

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

/* Begins a verification of a model that verify_may_compare() allows. The call is answered when it is over. Until then
 * it counts in the user's quota. */
void verify_begin(struct verifies *verifies, struct model *model, struct call *call);

/* Whether the model can be compared: it is resident, or its copy in host memory is there and stays. */
bool verify_may_compare(const struct model *model);

/* Begins one without a call: whether these files have all the bytes that the model was made of. The source is kept.
 * moves: if they have, and are other files, they are the model's from then on.
 * `done` is called later. why: with COMPARED_NOT, what failed; borrowed. -ENOMEM. */
int verify_compare(struct verifies *verifies, struct model *model, struct source *source, bool moves,
                   void (*done)(void *context, enum compared compared, const struct failure *why), void *context);

/* Ends the comparison with this context: nobody waits for it any more, and `done` is not called. Its last read of a
 * file may go on for a while. Returns false if there is no such comparison, or it is over. */
bool verify_drop(struct verifies *verifies, const void *context);

/* How many verifications and comparisons are under way. */
size_t verifies_count(const struct verifies *verifies);

/* Reports progress to the calls that wait. Called several times a second. */
void verifies_report(struct verifies *verifies);

/* Jobs that read files begin to hang, or go on: others take their place. */
void verifies_held_up(struct verifies *verifies);

/* A device is lost because a call of its driver does not return: calls that wait for it are answered. */
void verifies_lose_device(struct verifies *verifies, const struct device *device);

/* Ends all verifications early. Their calls fail with `error`. */
void verifies_end(struct verifies *verifies, enum wire_error error);
