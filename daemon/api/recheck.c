#include "daemon/api/recheck.h"

#include "daemon/base/worker.h"
#include "daemon/model/access_read.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <stdlib.h>

/* A call that waits. */
struct asking {
    TAILQ_ENTRY(asking) link;
    struct recheck *recheck;
    bool in_time; /* the call came before the worker was queued: the facts that it reads are new enough */
    struct call *call;
    recheck_then then;
    void *context;
};

/* A model whose facts are being read. */
struct recheck {
    TAILQ_ENTRY(recheck) link;
    struct rechecks *rechecks;
    uint64_t model;               /* its id; 0: of no model */
    bool again;                   /* to be read again, for rechecks_look() */
    TAILQ_HEAD(, asking) askings; /* those that are in_time come first */

    /* While work is queued, only the worker uses these. */
    struct work work;
    struct source *source;
    struct access_facts *before;
    struct access_facts *facts; /* NULL: they could not be read */
};

void rechecks_init(struct rechecks *rechecks)
{
    TAILQ_INIT(&rechecks->list);
}

static void asking_free(struct asking *asking)
{
    TAILQ_REMOVE(&asking->recheck->askings, asking, link);
#ifndef __clang_analyzer__ /* it does not see that TAILQ_REMOVE() has taken it out of the list */
    free(asking);
#endif
}

static void asking_abandoned(struct call *call)
{
    asking_free(call->context);
}

static void recheck_work(struct work *work)
{
    struct recheck *recheck = work->data;
    struct device_fault unused;
    worker_step_back();
    if (recheck->source && access_read(recheck->source, recheck->before, &recheck->facts, &unused) < 0)
        recheck->facts = NULL;
}

static void recheck_worked(struct work *work);

static void recheck_queue(struct recheck *recheck, struct model *model)
{
    struct asking *asking;
    TAILQ_FOREACH(asking, &recheck->askings, link)
    {
        asking->in_time = true;
    }
    recheck->source = model ? source_ref(model->source) : NULL;
    recheck->before = model ? access_facts_ref(model->facts) : NULL;
    recheck->facts = NULL;
    recheck->again = false;
    struct workers *workers = recheck->rechecks->core->queue;
    if (!model) {
        worker_queue(workers, &recheck->work, recheck, recheck_work, recheck_worked);
        return;
    }
    const struct work_reads reads = source_reads(recheck->source, model->uid);
    worker_queue_reading(workers, &recheck->work, &reads, recheck, recheck_work, recheck_worked);
}

/* Calls `then` for all calls that are in_time. */
static void recheck_tell(struct recheck *recheck, struct model *model)
{
    struct asking *asking;
    while ((asking = TAILQ_FIRST(&recheck->askings)) && asking->in_time) {
        const struct asking told = *asking;
        told.call->abandoned = NULL;
        asking_free(asking);
        told.then(told.context, recheck->model, model, told.call);
    }
}

static void look_next(struct rechecks *rechecks);

static void recheck_worked(struct work *work)
{
    struct recheck *recheck = work->data;
    struct rechecks *rechecks = recheck->rechecks;
    struct model *model = registry_find_id(rechecks->registry, recheck->model);
    /* A comparison of the file that ended meanwhile gives the model another source, and nobody else reads its facts. */
    const bool outdated = model && model->source != recheck->source;
    if (model && !outdated)
        events_set_facts(rechecks->events, model, recheck->facts);
    else
        access_facts_unref(recheck->facts);
    source_free(recheck->source);
    access_facts_unref(recheck->before);
    if (outdated) {
        recheck_queue(recheck, model);
        return;
    }
    recheck_tell(recheck, model);
    model = registry_find_id(rechecks->registry, recheck->model); /* a call that was answered may have unloaded it */
    if (!model) {
        struct asking *asking;
        TAILQ_FOREACH(asking, &recheck->askings, link)
        {
            asking->in_time = true;
        }
        recheck_tell(recheck, NULL);
    }
    if (!TAILQ_EMPTY(&recheck->askings) || (recheck->again && model)) {
        recheck_queue(recheck, model);
        return;
    }
    const bool goes_on = rechecks->looking && rechecks->looked == recheck->model;
    TAILQ_REMOVE(&rechecks->list, recheck, link);
    free(recheck);
    if (goes_on)
        look_next(rechecks);
    core_job_end(rechecks->core);
}

/* The recheck of this model; makes one if there is none. NULL: no memory. */
static struct recheck *recheck_of(struct rechecks *rechecks, uint64_t model, bool *ret_is_new)
{
    struct recheck *recheck;
    TAILQ_FOREACH(recheck, &rechecks->list, link)
    {
        if (recheck->model == model) {
            *ret_is_new = false;
            return recheck;
        }
    }
    recheck = calloc(1, sizeof(*recheck));
    if (!recheck)
        return NULL;
    recheck->rechecks = rechecks;
    recheck->model = model;
    TAILQ_INIT(&recheck->askings);
    TAILQ_INSERT_TAIL(&rechecks->list, recheck, link);
    core_job_begin(rechecks->core);
    *ret_is_new = true;
    return recheck;
}

void recheck_begin(struct rechecks *rechecks, struct model *model, struct call *call, recheck_then then, void *context)
{
    bool is_new;
    struct asking *asking = malloc(sizeof(*asking));
    struct recheck *recheck = asking ? recheck_of(rechecks, model ? model->id : 0, &is_new) : NULL;
    if (!recheck) {
        free(asking);
        call_fail(call, WIRE_LimitExceeded, error_no_memory());
        return;
    }
    *asking = (struct asking){.recheck = recheck, .call = call, .then = then, .context = context};
    TAILQ_INSERT_TAIL(&recheck->askings, asking, link);
    call->context = asking;
    call->abandoned = asking_abandoned;
    if (is_new)
        recheck_queue(recheck, model);
}

/* Reads the facts of the next model, if there is one. */
static void look_next(struct rechecks *rechecks)
{
    struct model *model;
    TAILQ_FOREACH(model, &rechecks->registry->models, link)
    {
        if (model->id > rechecks->looked)
            break;
    }
    const bool stopping = rechecks->core->stopping;
    bool is_new = false;
    struct recheck *recheck = model && !stopping ? recheck_of(rechecks, model->id, &is_new) : NULL;
    if (recheck) {
        rechecks->looked = model->id;
        recheck->again = true; /* what is under way may have read the facts already */
        if (is_new)
            recheck_queue(recheck, model);
        return;
    }
    rechecks->looking = false;
    if (rechecks->again && !stopping)
        rechecks_look(rechecks);
}

void rechecks_look(struct rechecks *rechecks)
{
    rechecks->again = rechecks->looking;
    if (rechecks->looking)
        return;
    rechecks->looking = true;
    rechecks->looked = 0;
    look_next(rechecks);
}
