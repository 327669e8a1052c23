#include "daemon/load/states.h"
#include "daemon/load/verify.h"
#include "daemon/model/source_compare.h"
#include "daemon/session/events.h"

struct registry_query load_query(const struct load_request *request, const struct source *source,
                                 const struct plan *plan)
{
    return (struct registry_query){
        .source = source,
        .forms = request->forms,
        .layout = request->layout,
        .plan = plan,
        .among = &request->among,
        .uid = request->uid,
        .private = request->access == ACCESS_PRIVATE,
        .peer = request->peer,
    };
}

bool load_may_end(const struct load_request *request, const struct model *model)
{
    return model_may_end(model, request->uid);
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

void load_doubt_ends(const struct loads *loads, uint64_t id, enum compared compared)
{
    struct model *model = registry_find_id(loads->registry, id);
    if (model && compared == COMPARED_OTHER)
        events_changed(loads->events, model);
}

bool load_doubt_fails(enum compared compared, const struct failure *why)
{
    return compared == COMPARED_NOT && (why->error == WIRE_FileChanged || why->error == WIRE_FileError);
}

void load_note_changes(const struct loads *loads, const struct source *source)
{
    struct model *model;
    TAILQ_FOREACH(model, &loads->registry->models, link)
    {
        if (model_is_published(model) || !registry_same_place(model, source))
            continue;
        if (source_seen(source) || registry_same_path(model, source)) /* there is a file */
            events_set_deleted(loads->events, model, false);
        if (!source_same_sizes(source, model->source))
            events_changed(loads->events, model);
    }
}

static void load_compared(void *context, enum compared compared, const struct failure *why)
{
    struct load *load = context;
    load_doubt_ends(load->loads, load->compared, compared);
    if (load_doubt_fails(compared, why))
        failure_set(&load->failure, why->error, failure_parameters(why));
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
    if (!verify_may_compare(model) || verify_compare(loads->verifies, model, job->source,
                                                     load_may_end(&load->request, model), load_compared, load) < 0) {
        load_doubt_ends(loads, model->id, COMPARED_NOT);
        return load_settle(load);
    }
    load->in_job = true;
    return true;
}

void load_drop_comparison(struct load *load)
{
    if (load->in_job && verify_drop(load->loads->verifies, load))
        load->in_job = false;
}
