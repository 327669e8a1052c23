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

enum load_verdict load_foresee(struct loads *loads, const struct load_request *request, struct source *source,
                               struct access_facts *facts, struct plan *plan, struct model **ret_model)
{
    struct load load = {.loads = loads, .request = *request, .job = {.source = source, .facts = facts}};
    struct naming naming;
    struct registry_query query = load_query(request, source, NULL);
    struct model *model = find_same(&load, &query, plan);
    const bool joins = model && !model_departs(model);
    *ret_model = joins ? model : NULL;
    if (!load_may_publish(request, facts))
        return LOAD_DENIED;
    struct model *queued = load_queued_before(loads, &query);
    if (queued) {
        *ret_model = queued;
        return LOAD_QUEUED;
    }
    if (joins) {
        const enum load_verdict verdict = load_judge_join(&load, model, &naming);
        const bool restores = model->state == MODEL_CACHED || model->state == MODEL_SAVING;
        return verdict == LOAD_JOIN && restores ? LOAD_RESTORE : verdict;
    }
    char name[MODEL_NAME_MAX + 1];
    load_name(&load, name);
    naming_judge(&load, name, NULL, &naming);
    return load_verdict_of(&naming, LOAD_NEW);
}
