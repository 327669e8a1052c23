#include "daemon/load/foresee.h"

#include "daemon/load/naming.h"
#include "daemon/load/states.h"

/* The model that the load would join. Load makes its plan at this point only if there are models whose forms or layout
 * were requested with other words; then `load` gets the plan. */
static struct model *find_same(struct load *load, struct registry_query *query, struct plan *plan)
{
    const struct registry *registry = load->loads->registry;
    struct model *model = registry_find_source(registry, query);
    if (model || !registry_find_other(registry, query, false))
        return model;
    load->job.plan = plan;
    query->plan = plan;
    return registry_find_source(registry, query);
}

/* What Load fails with. */
static void fail(struct load *load, enum load_verdict verdict, const struct model *model, const struct naming *naming)
{
    if (verdict == LOAD_DENIED)
        load_fail_publish(load);
    else if (verdict == LOAD_QUEUED)
        load_fail_queued(load, model);
    else if (verdict == LOAD_LIMITED && naming->verdict != NAME_TOO_MANY)
        load_fail_guests(load);
    else if (verdict == LOAD_BUSY || verdict == LOAD_TAKEN || verdict == LOAD_LIMITED)
        (void)naming_prepare(load, naming->name, model, naming);
}

static enum load_verdict judge(struct load *load, struct plan *plan, struct model **ret_model,
                               struct naming *ret_naming)
{
    struct loads *loads = load->loads;
    const struct load_request *request = &load->request;
    const struct load_job *job = &load->job;
    struct registry_query query = load_query(request, job->source, NULL);
    struct model *model = find_same(load, &query, plan);
    const bool joins = model && !model_departs(model);
    *ret_model = joins ? model : NULL;
    if (!load_may_publish(request, job->facts))
        return LOAD_DENIED;
    struct model *queued = load_queued_before(loads, &query);
    if (queued) {
        *ret_model = queued;
        return LOAD_QUEUED;
    }
    if (joins) {
        const enum load_verdict verdict = load_judge_join(load, model, ret_naming);
        const bool restores = model->state == MODEL_CACHED || model->state == MODEL_SAVING;
        return verdict == LOAD_JOIN && restores ? LOAD_RESTORE : verdict;
    }
    if (!plan && registry_find_other(loads->registry, &query, false))
        return LOAD_NEW; /* Load makes a plan to compare with that model's */
    char name[MODEL_NAME_MAX + 1];
    load_name(load, name);
    naming_judge(load, name, NULL, ret_naming);
    return load_verdict_of(ret_naming, LOAD_NEW);
}

enum load_verdict load_foresee(struct loads *loads, const struct load_request *request, struct source *source,
                               struct access_facts *facts, struct plan *plan, struct model **ret_model,
                               struct failure *ret_failure)
{
    struct load load = {.loads = loads, .request = *request, .job = {.source = source, .facts = facts}};
    struct naming naming = {.verdict = NAME_FREE};
    const enum load_verdict verdict = judge(&load, plan, ret_model, &naming);
    if (!plan)
        fail(&load, verdict, *ret_model, &naming);
    *ret_failure = load.failure;
    return verdict;
}
