#include "daemon/load/verify.h"

#include "daemon/base/json_text.h"
#include "daemon/base/log.h"
#include "daemon/base/worker.h"
#include "daemon/load/failure.h"
#include "daemon/load/verify_steps.h"
#include "daemon/memory/residency.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Jobs of one verification at a time. All verifications together get half of the workers, so that loads go on. */
#define VERIFY_JOBS 2u

struct verify {
    TAILQ_ENTRY(verify) link;
    struct verifies *verifies;
    struct quota_charge charge;
    struct model *model;
    struct call *call; /* NULL: there is none, or it was abandoned */
    void (*done)(void *context, enum compared compared, const struct failure *why);
    void *context;
    struct comparison comparison;
    bool given;   /* the files were given, by verify_compare() */
    bool opened;  /* the files are open, and there is a plan */
    bool padded;  /* what stands between the tensors was compared, or need not be */
    bool damaged; /* and it is not zero */
    bool checked; /* the last job found that the files did not change while they were read */
    struct verify_job jobs[VERIFY_JOBS];
    uid_t uid; /* who asked, or whose model it is */
    size_t n_under_way;
    size_t next_chunk;
    uint64_t done_bytes;
    uint64_t began;
    cJSON *mismatches;
    struct failure failure;
    bool ending; /* no more jobs are queued */
};

static void verify_step(struct verify *verify);
static void verify_turn(struct verifies *verifies);
static void verify_report(struct verify *verify);

static void verify_free(struct verify *verify)
{
    struct verifies *verifies = verify->verifies;
    for (size_t i = 0; i < VERIFY_JOBS; i++) {
        free(verify->jobs[i].expected);
        free(verify->jobs[i].actual);
    }
    plan_free(verify->comparison.plan);
    source_free(verify->comparison.source);
    source_free(verify->comparison.given);
    source_free(verify->comparison.renewed);
    source_free(verify->comparison.loaded);
    cJSON_Delete(verify->mismatches);
    failure_clear(&verify->failure);
    quota_return(&verify->charge);
    TAILQ_REMOVE(&verifies->list, verify, link);
    free(verify);
    core_job_end(verifies->core);
}

static void verify_work(struct work *work)
{
    struct verify_job *job = work->data;
    worker_step_back();
    job->run(job);
}

/* Adds a mismatch to the reply. Each tensor is reported once, with the first difference that was found. */
static void verify_tell(struct verify *verify, size_t tensor, uint64_t byte)
{
    const char *name = verify->model->header->tensors[tensor].name;
    const cJSON *told;
    cJSON_ArrayForEach (told, verify->mismatches) {
        if (strcmp(cJSON_GetObjectItemCaseSensitive(told, "tensor")->valuestring, name) == 0)
            return;
    }
    if ((unsigned)cJSON_GetArraySize(verify->mismatches) >= VERIFY_TOLD_MAX)
        return;
    cJSON *mismatch = cJSON_CreateObject();
    cJSON_AddStringToObject(mismatch, "tensor", name);
    cJSON_AddNumberToObject(mismatch, "offset", (double)byte);
    json_append(verify->mismatches, mismatch);
}

/* The verification fails with the job's error. */
static void verify_fail(const struct verify_job *job)
{
    struct verify *verify = job->verify;
    if (job->of_file)
        failure_set_changed(&verify->failure, job->status, &job->fault, verify->comparison.loaded->path, "while-read");
    else if (!job->chunk && job->status == -ENOMEM) /* the daemon had no memory for the plan */
        failure_set(&verify->failure, WIRE_LimitExceeded, error_no_memory());
    else
        failure_set_device(&verify->failure, job->status, &job->fault);
}

static void verify_worked(struct work *work)
{
    struct verify_job *job = work->data;
    struct verify *verify = job->verify;
    struct verifies *verifies = verify->verifies;
    verify->n_under_way--;
    verifies->n_jobs--;
    if (job->status < 0)
        verify_fail(job);
    else if (job->chunk)
        verify->done_bytes += job->chunk->model_bytes;
    else if (job->run == verify_job_padding) {
        verify->padded = true;
        verify->damaged = job->n_differences > 0;
    } else if (verify->opened)
        verify->checked = true;
    else if (verify->comparison.stale)
        verify->ending = true;
    else {
        verify->opened = true;
        verify_report(verify); /* at least one report, even if all is compared before the first tick */
    }
    if (job->status == -ENODEV && !job->of_file)
        residency_lose_device(verifies->residency, verify->model->device);
    for (size_t i = 0; i < job->n_differences; i++)
        verify_tell(verify, job->differences[i].tensor, job->differences[i].byte);
    if (verify->given && job->n_differences > 0)
        verify->ending = true;
    job->chunk = NULL;
    verify_step(verify);
    verify_turn(verifies);
}

/* Jobs that wait for a file that does not answer: other verifications do not wait for them. */
static size_t jobs_held_up(const struct verifies *verifies)
{
    size_t n = 0;
    const struct verify *verify;
    TAILQ_FOREACH(verify, &verifies->list, link)
    {
        for (size_t i = 0; i < VERIFY_JOBS; i++)
            n += work_held_up(&verify->jobs[i].work);
    }
    return n;
}

/* True if another job may be queued: verifications leave half of the workers to loads. */
static bool verify_may(const struct verifies *verifies)
{
    const unsigned workers = verifies->core->workers;
    return verifies->n_jobs - jobs_held_up(verifies) < (workers > 2 ? workers / 2 : 1);
}

static void verify_queue(struct verify *verify, struct verify_job *job, void (*run)(struct verify_job *job),
                         const struct chunk *chunk)
{
    job->run = run;
    job->chunk = chunk;
    job->status = 0;
    job->n_differences = 0;
    job->of_file = false;
    verify->n_under_way++;
    verify->verifies->n_jobs++;
    const struct source *source = verify->comparison.source ? verify->comparison.source : verify->comparison.loaded;
    const struct work_reads reads = source_reads(source, verify->uid);
    worker_queue_reading(verify->verifies->core->queue, &job->work, &reads, job, verify_work, verify_worked);
}

/* All bytes are the same. The model gets its files as they are now, or those that were given. If a path of these files
 * leads to another file by now, the model still counts as changed. */
static void verify_renew(struct verify *verify)
{
    const struct comparison *c = &verify->comparison;
    struct model *model = verify->model;
    const bool unseen = !verify->given && !source_seen(model->source); /* the daemon cannot see what is at the path */
    const bool changed = model->changed, elsewhere = changed && (c->replaced || unseen);
    if (c->takes)
        model_set_source(model, source_ref(c->source));
    else if (c->renewed)
        model_set_source(model, source_ref(c->renewed));
    model_set_changed(model, elsewhere);
    if (changed && !elsewhere)
        events_restored(verify->verifies->residency->events, model);
}

/* The file has other bytes than the model. The caller of verify_compare() notes it itself, if it still waits. */
static void verify_tell_changed(struct verify *verify)
{
    failure_set_changed(&verify->failure, -ESTALE, NULL, verify->comparison.loaded->path, "since-loaded");
    if (!verify->done)
        events_changed(verify->verifies->residency->events, verify->model);
}

static cJSON *verify_describe(struct verify *verify)
{
    const struct model *model = verify->model;
    const int mismatches = cJSON_GetArraySize(verify->mismatches);
    if (mismatches > 0)
        log_client_fields(LOG_LEVEL_ERROR,
                          (&(const struct log_fields){
                              .id = MESSAGE_MODEL_DAMAGED, .model = model->name, .device = model->device->id}),
                          "model=%s id=%" PRIu64 " verify: %d tensors differ from the file", model->name, model->id,
                          mismatches);
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddNumberToObject(reply, "tensors", (double)model->header->n_tensors);
    cJSON_AddNumberToObject(reply, "bytes", (double)verify->comparison.plan->model_bytes);
    json_add_item(reply, "mismatches", verify->mismatches);
    verify->mismatches = NULL;
    cJSON_AddBoolToObject(reply, "replaced", verify->comparison.replaced);
    if (verify->comparison.deleted)
        cJSON_AddTrueToObject(reply, "deleted");
    return reply;
}

/* All is compared, or something ended it. */
static void verify_finish(struct verify *verify)
{
    struct call *call = verify->call;
    struct model *model = verify->model;
    const bool differ = cJSON_GetArraySize(verify->mismatches) > 0;
    const bool failed = verify->failure.error != WIRE_OK;
    const enum compared compared = !failed && (differ || verify->comparison.stale) ? COMPARED_OTHER
                                   : !failed && verify->checked                    ? COMPARED_SAME
                                                                                   : COMPARED_NOT;
    if (compared == COMPARED_SAME)
        verify_renew(verify);
    if (verify->checked)
        events_set_deleted(verify->verifies->residency->events, model, verify->comparison.deleted);
    /* What verify_compare() was given to compare is not at the path yet: its caller looks itself. */
    if (verify->checked && !verify->done && verify->comparison.replaced)
        events_changed(verify->verifies->residency->events, model);
    /* If somebody wrote to the file, it is the file that differs, and not the memory that is damaged. */
    if (verify->comparison.stale || (verify->comparison.touched && differ && !verify->damaged))
        verify_tell_changed(verify);
    const uint64_t id = model->id;
    model_unhold(model);
    void (*done)(void *context, enum compared compared, const struct failure *why) = verify->done;
    verify->done = NULL; /* it is over: verify_drop() does not find it any more */
    if (done)            /* a load may go on, and take the model's name, which frees the model */
        done(verify->context, compared, &verify->failure);
    if (call) {
        call->abandoned = NULL;
        if (verify->failure.error != WIRE_OK)
            call_fail(call, verify->failure.error, failure_parameters(&verify->failure));
        else
            call_reply(call, verify_describe(verify), NULL, 0);
    }
    struct residency *residency = verify->verifies->residency;
    model = registry_find_id(residency->registry, id);
    if (model)
        residency_idle(residency, model);
    verify_free(verify);
}

/* The next of the jobs that run alone. */
static void (*verify_next_alone(const struct verify *verify))(struct verify_job *)
{
    if (!verify->opened)
        return verify_job_open;
    return verify->padded ? verify_job_check : verify_job_padding;
}

static void verify_step(struct verify *verify)
{
    bool over = verify->ending || verify->failure.error != WIRE_OK || verify->checked;
    for (size_t i = 0; i < VERIFY_JOBS && !over && verify_may(verify->verifies); i++) {
        const struct plan *plan = verify->opened ? verify->comparison.plan : NULL;
        if (!plan || verify->next_chunk == plan->n_chunks) {
            if (verify->n_under_way == 0)
                verify_queue(verify, &verify->jobs[0], verify_next_alone(verify), NULL);
            break;
        }
        if (!verify->jobs[i].chunk)
            verify_queue(verify, &verify->jobs[i], verify_job_chunk, &plan->chunks[verify->next_chunk++]);
    }
    if (over && verify->n_under_way == 0)
        verify_finish(verify);
}

/* A job is over: the verification that has waited longest gets the next job, and goes to the end of the list. */
static void verify_turn(struct verifies *verifies)
{
    struct verify *verify = TAILQ_FIRST(&verifies->list), *last = TAILQ_LAST(&verifies->list, verify_list);
    while (verify && verify_may(verifies)) {
        struct verify *next = TAILQ_NEXT(verify, link);
        bool was_last = verify == last;
        if (verify->n_under_way < VERIFY_JOBS) {
            TAILQ_REMOVE(&verifies->list, verify, link);
            TAILQ_INSERT_TAIL(&verifies->list, verify, link);
            verify_step(verify); /* may free it */
        }
        verify = was_last ? NULL : next;
    }
}

static void verify_abandoned(struct call *call)
{
    struct verify *verify = call->context;
    verify->call = NULL;
    verify->ending = true;
    verify_step(verify);
}

/* Makes a verification, and begins nothing. It counts in the quota of the call's user; call NULL: in none. -EDQUOT, and
 * the limit, if the user has too many; -ENOMEM. */
static int verify_new(struct verifies *verifies, struct model *model, struct call *call, struct verify **ret,
                      uint64_t *ret_limit)
{
    struct verify *verify = calloc(1, sizeof(*verify));
    if (!verify)
        return -ENOMEM;
    int r = call ? quota_take(verifies->quota, conn_uid(call->conn), QUOTA_VERIFIES, 1, &verify->charge, ret_limit) : 0;
    if (r < 0) {
        free(verify);
        return r;
    }
    verify->verifies = verifies;
    verify->model = model;
    verify->uid = call ? conn_uid(call->conn) : model->uid;
    verify->comparison = (struct comparison){
        .model = model,
        .loaded = source_ref(model->source),
    };
    verify->began = uv_hrtime();
    TAILQ_INSERT_TAIL(&verifies->list, verify, link);
    core_job_begin(verifies->core);
    verify->mismatches = cJSON_CreateArray();
    bool complete = verify->mismatches;
    for (size_t i = 0; i < VERIFY_JOBS; i++) {
        verify->jobs[i].verify = verify;
        verify->jobs[i].comparison = &verify->comparison;
        verify->jobs[i].expected = malloc(VERIFY_BYTES);
        verify->jobs[i].actual = malloc(VERIFY_BYTES);
        complete = complete && verify->jobs[i].expected && verify->jobs[i].actual;
    }
    if (!complete) {
        verify_free(verify);
        return -ENOMEM;
    }
    *ret = verify;
    return 0;
}

void verify_begin(struct verifies *verifies, struct model *model, struct call *call)
{
    struct verify *verify;
    uint64_t limit = 0;
    int r = verify_new(verifies, model, call, &verify, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded, error_quota(r, QUOTA_VERIFIES, limit));
        return;
    }
    verify->call = call;
    verify->comparison.moves = true; /* they are the same files */
    model_hold(model);
    call->context = verify;
    call->abandoned = verify_abandoned;
    verify_step(verify);
}

bool verify_may_compare(const struct model *model)
{
    return (model->state == MODEL_RESIDENT || model->state == MODEL_CACHED) && !model->load;
}

int verify_compare(struct verifies *verifies, struct model *model, struct source *source, bool moves,
                   void (*done)(void *context, enum compared compared, const struct failure *why), void *context)
{
    struct verify *verify;
    uint64_t unused;
    int r = verify_new(verifies, model, NULL, &verify, &unused);
    if (r < 0)
        return r;
    verify->given = verify->padded = true; /* the files alone are in question */
    verify->comparison.source = source_ref(source);
    verify->comparison.moves = moves;
    verify->done = done;
    verify->context = context;
    model_hold(model);
    verify_step(verify);
    return 0;
}

bool verify_drop(struct verifies *verifies, const void *context)
{
    struct verify *verify;
    TAILQ_FOREACH(verify, &verifies->list, link)
    {
        if (verify->done && verify->context == context)
            break;
    }
    if (!verify)
        return false;
    verify->done = NULL;
    verify->ending = true;
    verify_step(verify);
    return true;
}

static void verify_report(struct verify *verify)
{
    if (!verify->call || !verify->call->more || !verify->opened)
        return;
    const struct progress progress = {
        .done = verify->done_bytes,
        .total = verify->comparison.plan->model_bytes,
        .elapsed_ns = uv_hrtime() - verify->began,
    };
    cJSON *reply = cJSON_CreateObject();
    json_add_item(reply, "progress", describe_progress("verifying", &progress));
    (void)call_continue(verify->call, reply);
}

void verifies_init(struct verifies *verifies)
{
    TAILQ_INIT(&verifies->list);
}

size_t verifies_count(const struct verifies *verifies)
{
    size_t n = 0;
    const struct verify *verify;
    TAILQ_FOREACH(verify, &verifies->list, link)
    {
        n++;
    }
    return n;
}

void verifies_report(struct verifies *verifies)
{
    struct verify *verify;
    TAILQ_FOREACH(verify, &verifies->list, link)
    {
        verify_report(verify);
    }
}

void verifies_lose_device(struct verifies *verifies, const struct device *device)
{
    struct verify *next;
    for (struct verify *verify = TAILQ_FIRST(&verifies->list); verify; verify = next) {
        next = TAILQ_NEXT(verify, link);
        if (verify->model->device != device)
            continue;
        struct call *call = verify->call;
        verify->call = NULL;
        verify->ending = true;
        if (call) {
            call->abandoned = NULL;
            call_fail(call, WIRE_DeviceError, describe_device_lost(device, "verify"));
        }
        verify_step(verify);
    }
}

void verifies_held_up(struct verifies *verifies)
{
    verify_turn(verifies);
}

void verifies_end(struct verifies *verifies, enum wire_error error)
{
    struct verify *next;
    for (struct verify *verify = TAILQ_FIRST(&verifies->list); verify; verify = next) {
        next = TAILQ_NEXT(verify, link);
        failure_set(&verify->failure, error, NULL);
        verify->ending = true;
        verify_step(verify);
    }
}
