#include "daemon/base/closer.h"
#include "daemon/base/seconds.h"
#include "daemon/load/creation.h"
#include "daemon/load/states.h"
#include "daemon/model/calling.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/errors.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Frees what request_copy() made. */
static void request_clear(struct load_request *request)
{
    creation_free(request->creation);
    forms_unref(request->forms);
    layout_unref(request->layout);
    peer_unref(request->peer);
    free((char *)(uintptr_t)request->name);
    free((char *)(uintptr_t)request->path);
}

void load_free(struct load *load)
{
    assert(waiters_empty(&load->waiters) && load->n_fills == 0 && load->claim.n_victims == 0 && !load->in_job);
    struct loads *loads = load->loads;
    later_drop(&loads->core->laters, &load->moving);
    TAILQ_REMOVE(&loads->list, load, link);
    loads->n--;
    quota_return(&load->charge);
    failure_clear(&load->failure);
    load_job_clear(&load->job);
    free(load->fills);
    cold_free(load->cold);
    trace_free(load->trace);
    request_clear(&load->request);
    free(load);
    core_changed(loads->core);
    core_job_end(loads->core);
}

static void load_granted(struct claim *claim)
{
    struct load *load = (struct load *)((char *)claim - offsetof(struct load, claim));
    if (!load->in_job)
        load_queue(load, load_job_nothing);
}

/* Lets the load wait in the queue for this time from now, unless it may already wait longer. */
static void load_be_patient(struct load *load, double seconds)
{
    const uint64_t ends = uv_hrtime() + seconds_to_ns(seconds);
    if (seconds > 0 && load->patience_ends < ends)
        load->patience_ends = ends;
}

/* Copies the request, with copies of its strings and references of its own. After -ENOMEM too the caller ends the copy
 * with request_clear(). */
static int request_copy(struct load_request *copy, const struct load_request *request)
{
    *copy = *request;
    copy->fds = NULL;
    copy->creation = NULL; /* load_new() takes it over in the end */
    copy->forms = forms_ref(request->forms);
    copy->layout = layout_ref(request->layout);
    copy->peer = peer_ref(request->peer);
    copy->name = request->name ? strdup(request->name) : NULL;
    copy->path = request->path ? strdup(request->path) : NULL;
    return (request->name && !copy->name) || (request->path && !copy->path) ? -ENOMEM : 0;
}

/* Makes a load that has only its request. -EDQUOT, and the limit, if its user has too many loads; -ENOMEM. */
static int load_new(struct loads *loads, const struct load_request *request, struct load **ret, uint64_t *ret_limit)
{
    struct load *load = calloc(1, sizeof(*load));
    if (!load)
        return -ENOMEM;
    int r = request_copy(&load->request, request);
    if (r == 0)
        r = quota_take(loads->quota, request->uid, QUOTA_LOADS, 1, &load->charge, ret_limit);
    if (r < 0) {
        request_clear(&load->request);
        free(load);
        return r;
    }
    load->loads = loads;
    load->request.creation = request->creation;
    load->claim.granted = load_granted;
    load->began = uv_hrtime();
    load->detached = !request->wait;
    load_be_patient(load, request->wait_for_memory);
    load->trace = request->trace ? trace_new(load->began) : NULL;
    load->job = (struct load_job){
        .closer = loads->core->closer,
        .uid = request->uid,
        .path = load->request.path,
        .trusted = request->trusted,
        .forms = request->forms,
        .layout = request->layout,
        .published = PUBLICATION_NONE,
    };
    waiters_init(&load->waiters, load_deserted);
    TAILQ_INSERT_TAIL(&loads->list, load, link);
    loads->n++;
    core_job_begin(loads->core);
    *ret = load;
    return 0;
}

void load_begin(struct loads *loads, const struct load_request *request, struct call *call)
{
    struct load *load;
    uint64_t limit = 0;
    int r = load_new(loads, request, &load, &limit);
    if (r < 0) {
        for (size_t i = 0; i < request->n_fds; i++)
            closer_close(loads->core->closer, request->uid, request->fds[i]);
        creation_free(request->creation);
        if (call)
            call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_LOADS, limit));
        else
            request->done(request->context, NULL, "out of memory");
        return;
    }
    if (request->fds)
        memcpy(load->job.fds, request->fds, request->n_fds * sizeof(int));
    load->job.n_fds = request->n_fds;
    const enum waiter_kind kind = request->creation ? WAIT_CREATE
                                  : request->lease  ? WAIT_LEASE
                                  : request->wait   ? WAIT_RESIDENT
                                                    : WAIT_ALLOCATED;
    if (call && !waiters_add(&load->waiters, call, kind)) {
        load_free(load);
        return;
    }
    waiters_set_patience(&load->waiters, load->patience_ends);
    load_queue(load, request->creation ? load_job_no_source : load_job_identify);
}

void load_restore(struct loads *loads, struct model *model, struct call *call, enum waiter_kind kind)
{
    assert(model->state == MODEL_CACHED || model->state == MODEL_SAVING);
    const struct load_request request = {.forms = model->forms,
                                         .layout = model->layout,
                                         .among = {.devices = {model->device}, .n = 1},
                                         .peer = conn_peer(call->conn),
                                         .uid = conn_uid(call->conn),
                                         .wait = true,
                                         .ttl = -1,
                                         .access = model->access};
    struct load *load;
    uint64_t limit = 0;
    int r = load_new(loads, &request, &load, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_LOADS, limit));
        return;
    }
    if (!waiters_add(&load->waiters, call, kind)) {
        load_free(load);
        return;
    }
    if (model->state == MODEL_CACHED && !model_in_use(model)) {
        load_begin_restore(load, model);
        return;
    }
    load->awaited = model->id;
    char room[MODEL_NAME_SIZE];
    strcpy(load->awaited_name, model_called(model, request.peer, room));
    load->blocked = true;
}
