#include "daemon/api/changes.h"

#include "daemon/base/worker.h"
#include "daemon/memory/residency.h"
#include "daemon/model/source_look.h"
#include "daemon/session/events.h"

#include <errno.h>
#include <stdlib.h>

struct changes {
    struct loads *loads;
    struct verifies *verifies;
    uint64_t model; /* id of the model that is checked, or was checked last; 0: none */
    bool looking;
    bool again; /* another check was asked for during this one */

    /* While work is queued, only the worker uses these. */
    struct work work;
    struct source *source; /* the model's */
    struct source *now;    /* the same files as they are now; NULL: nothing is to be compared, or the call failed */
    bool changed;          /* the model counts as changed: this may be over */
    bool deleted;          /* one of its files was deleted */
    enum source_look look;
};

int changes_new(struct loads *loads, struct verifies *verifies, struct changes **ret)
{
    struct changes *changes = calloc(1, sizeof(*changes));
    if (!changes)
        return -ENOMEM;
    changes->loads = loads;
    changes->verifies = verifies;
    *ret = changes;
    return 0;
}

void changes_free(struct changes *changes)
{
    free(changes);
}

static void changes_next(struct changes *changes);

static void changes_work(struct work *work)
{
    struct changes *changes = work->data;
    worker_step_back();
    changes->look = source_look(changes->source);
    changes->deleted = source_deleted(changes->source);
    struct device_fault unused;
    const bool compares = changes->look == SOURCE_TOUCHED || (changes->look == SOURCE_THERE && changes->changed);
    if (compares && source_reopen(changes->source, &changes->now, &unused) < 0)
        changes->now = NULL;
}

static void changes_compared(void *context, enum compared compared, const struct failure *why)
{
    (void)why; /* the next check finds out */
    struct changes *changes = context;
    load_doubt_ends(changes->loads, changes->model, compared);
    changes_next(changes);
}

static void changes_worked(struct work *work)
{
    struct changes *changes = work->data;
    struct source *now = changes->now;
    struct model *model = registry_find_id(changes->loads->registry, changes->model);
    const bool stays = model && model->source == changes->source && !changes->loads->core->stopping;
    source_free(changes->source);
    changes->now = NULL;
    if (stays)
        events_set_deleted(changes->loads->events, model, changes->deleted);
    /* A model stays changed if the daemon cannot see what is at its path. */
    const bool clears = stays && (source_seen(model->source) || !model->changed);
    bool compares = false;
    if (clears && now && verify_may_compare(model))
        compares = verify_compare(changes->verifies, model, now, true, changes_compared, changes) == 0;
    /* What cannot be read is not known to have changed. */
    if (stays && changes->look == SOURCE_OTHER)
        load_doubt_ends(changes->loads, changes->model, COMPARED_OTHER);
    source_free(now);
    if (!compares)
        changes_next(changes);
}

/* One that is being loaded, too: who waits for it is told if other bytes are at its path by now. */
static bool is_checked(const struct model *model)
{
    return model->state != MODEL_DRAINING && model->state != MODEL_FAILED && !model_departs(model) &&
           model->source->path;
}

/* Checks the next model. Ends the check if there is none. */
static void changes_next(struct changes *changes)
{
    struct model *model;
    TAILQ_FOREACH(model, &changes->loads->registry->models, link)
    {
        if (model->id > changes->model && is_checked(model))
            break;
    }
    if (model && !changes->loads->core->stopping) {
        changes->model = model->id;
        changes->source = source_ref(model->source);
        changes->changed = model->changed;
        const struct work_reads reads = source_reads(model->source, model->uid);
        worker_queue_reading(changes->loads->core->queue, &changes->work, &reads, changes, changes_work,
                             changes_worked);
        return;
    }
    changes->looking = false;
    if (changes->again && !changes->loads->core->stopping)
        changes_look(changes);
    core_job_end(changes->loads->core);
}

void changes_look(struct changes *changes)
{
    changes->again = changes->looking;
    if (changes->looking)
        return;
    changes->looking = true;
    changes->model = 0;
    core_job_begin(changes->loads->core);
    changes_next(changes);
}
