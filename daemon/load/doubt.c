#include "daemon/load/states.h"
#include "daemon/session/events.h"

#include <string.h>

struct registry_query load_query(const struct load_request *request, const struct source *source,
                                 const struct plan *plan)
{
    return (struct registry_query){
        .source = source,
        .forms = request->forms,
        .plan = plan,
        .among = &request->among,
        .owner = request->access == ACCESS_PRIVATE ? &request->uid : NULL,
    };
}

struct model *load_doubt(const struct loads *loads, const struct load_request *request, const struct source *source,
                         const struct plan *plan, uint64_t after)
{
    const struct registry_query query = load_query(request, source, plan);
    return registry_find_doubtful(loads->registry, &query, after);
}

struct model *load_queued_before(const struct loads *loads, const struct registry_query *query)
{
    struct model *model = registry_find_source(loads->registry, query);
    if (!model)
        model = registry_find_doubtful(loads->registry, query, 0);
    while (model && (model->state != MODEL_QUEUED || model_departs(model)))
        model = registry_find_doubtful(loads->registry, query, model->id);
    return model;
}

void load_doubt_ends(const struct loads *loads, uint64_t id, bool same)
{
    struct model *model = registry_find_id(loads->registry, id);
    if (!model || same || model->changed)
        return;
    model->changed = true;
    events_emit(loads->events, "changed", model, NULL);
}

void load_note_changes(const struct loads *loads, const struct load_request *request, const struct source *source,
                       const struct access_facts *facts)
{
    struct model *model;
    TAILQ_FOREACH(model, &loads->registry->models, link)
    {
        /* If the daemon did not find the file at this path, the path may belong to another mount namespace. */
        const bool believed = (facts && facts->placed) || model->uid == request->uid;
        if (believed && !model->changed && source->path && model->source->path &&
            strcmp(source->path, model->source->path) == 0 && !source_same_sizes(source, model->source)) {
            model->changed = true;
            events_emit(loads->events, "changed", model, NULL);
        }
    }
}

static void load_compared(void *context, bool same)
{
    struct load *load = context;
    load_doubt_ends(load->loads, load->compared, same);
    load->in_job = false;
    load_step(load);
}

bool load_settle(struct load *load)
{
    struct loads *loads = load->loads;
    const struct load_job *job = &load->job;
    struct model *model = load_doubt(loads, &load->request, job->source, job->plan, load->compared);
    if (!model)
        return false;
    if (model_departs(model) || model->state == MODEL_SAVING || model->load) {
        load->blocked = true;
        return true;
    }
    load->compared = model->id;
    if (model->state != MODEL_RESIDENT || !loads->compare ||
        loads->compare(loads->compare_context, model, job->source, load_compared, load) < 0) {
        load_doubt_ends(loads, model->id, false);
        return load_settle(load);
    }
    load->in_job = true;
    return true;
}
