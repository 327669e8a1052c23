#include "daemon/api/verify.h"

#include "daemon/base/log.h"
#include "daemon/base/worker.h"
#include "daemon/load/failure.h"
#include "daemon/load/fill.h"
#include "daemon/memory/residency.h"
#include "daemon/session/describe.h"
#include "daemon/session/events.h"
#include "daemon/wire/conn.h"
#include "daemon/wire/errors.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Bytes that each job decodes and compares at once. */
#define VERIFY_BYTES (1u << 20)

/* Jobs of one verification at a time. All verifications together get half of the workers, so that loads go on. */
#define VERIFY_JOBS 2u

/* Most mismatches that the reply has. */
#define VERIFY_TOLD_MAX 64u

struct verify_job {
    struct verify *verify;
    uv_work_t work;
    const struct chunk *chunk;
    uint8_t *expected; /* VERIFY_BYTES each */
    uint8_t *actual;

    int status;
    bool of_file;
    struct device_fault fault;
    size_t n_differences; /* pieces that differ; `byte` is the first byte that does */
    struct {
        size_t piece;
        uint64_t byte;
    } differences[VERIFY_TOLD_MAX];
};

struct verify {
    TAILQ_ENTRY(verify) link;
    struct verifies *verifies;
    struct quota_charge charge;
    struct model *model;
    struct call *call; /* NULL: there is none, or it was abandoned */
    void (*done)(void *context, bool same);
    void *context;
    struct source *loaded;  /* the files that the model was made of */
    struct source *source;  /* those that are read: opened by the first job, unless others were given */
    struct plan *plan;      /* made by the first job */
    struct source *renewed; /* `loaded`, opened again by the last job; NULL unless `source` is the same files */
    bool moves;             /* if the bytes are the same, `source` becomes the model's source */
    bool touched;           /* `source` differs from `loaded` in files, sizes or times */
    bool stale;             /* sizes or headers differ, so the bytes are not the same */
    bool replaced;          /* the path leads to another file */
    bool planned;
    bool checked; /* the last job found that the files did not change while they were read */
    struct verify_job jobs[VERIFY_JOBS];
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
    plan_free(verify->plan);
    source_free(verify->source);
    source_free(verify->renewed);
    source_free(verify->loaded);
    cJSON_Delete(verify->mismatches);
    failure_clear(&verify->failure);
    quota_return(&verify->charge);
    TAILQ_REMOVE(&verifies->list, verify, link);
    free(verify);
    core_job_end(verifies->core);
}

/* Two values are equal if their bits are equal, or if both are NaN: processors make NaNs with different bits. */
static bool values_equal(enum form form, const uint8_t *a, const uint8_t *b)
{
    if (form == FORM_F32) {
        float x, y;
        memcpy(&x, a, sizeof(x));
        memcpy(&y, b, sizeof(y));
        return memcmp(a, b, sizeof(x)) == 0 || (isnan(x) && isnan(y));
    }
    uint16_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    uint16_t infinity = form == FORM_F16 ? 0x7c00 : 0x7f80;
    return x == y || ((x & 0x7fff) > infinity && (y & 0x7fff) > infinity);
}

/* The first byte at which a piece differs, or -1. */
static int64_t piece_compare(const struct piece *piece, const uint8_t *expected, const uint8_t *actual)
{
    if (memcmp(expected, actual, piece->arena_bytes) == 0)
        return -1;
    size_t step = piece->form == FORM_NATIVE ? 1 : form_element_bytes(piece->form);
    for (uint64_t at = 0; at < piece->arena_bytes; at += step)
        if (step == 1 ? expected[at] != actual[at] : !values_equal(piece->form, expected + at, actual + at))
            return (int64_t)at;
    return -1;
}

static void verify_chunk(struct verify_job *job)
{
    struct verify *verify = job->verify;
    const struct plan *plan = verify->plan;
    const struct part whole = {.first_piece = job->chunk->first_piece, .n_pieces = job->chunk->n_pieces};
    struct fill_count count = {0};
    job->status = fill_read(verify->source, plan, job->chunk, &whole, job->expected, &count, &job->fault);
    if (job->status < 0) {
        job->of_file = true;
        return;
    }
    struct device *device = verify->model->device;
    for (size_t i = job->chunk->first_piece; i < job->chunk->first_piece + job->chunk->n_pieces; i++) {
        const struct piece *piece = &plan->pieces[i];
        job->status = device->ops->arena_read(verify->model->arena, piece->arena_offset, job->actual,
                                              piece->arena_bytes, &job->fault);
        if (job->status < 0)
            return;
        int64_t at = piece_compare(piece, job->expected + piece->slot_offset, job->actual);
        if (at >= 0 && job->n_differences < VERIFY_TOLD_MAX) {
            job->differences[job->n_differences].piece = i;
            job->differences[job->n_differences++].byte = (uint64_t)at;
        }
    }
}

/* The last job: checks that the files did not change since they were opened. Else a file that changes while it is read
 * would be reported as an error in the device's memory. */
static void verify_check(struct verify_job *job)
{
    struct verify *verify = job->verify;
    job->status = source_check(verify->source, &job->fault);
    job->of_file = job->status < 0;
    const char *path = verify->loaded->path;
    struct stat st;
    const struct identity *loaded = &verify->loaded->files[0].identity;
    struct device_fault unused;
    if (job->status == 0 && verify->touched && !verify->moves && source_same_files(verify->loaded, verify->source) &&
        source_reopen(verify->loaded, &verify->renewed, &unused) == 0 &&
        !source_equal(verify->renewed, verify->source)) {
        source_free(verify->renewed);
        verify->renewed = NULL;
    }
    verify->replaced = path && stat(path, &st) == 0 && (st.st_dev != loaded->dev || st.st_ino != loaded->ino);
}

static int compare_headers(struct verify *verify, struct verify_job *job)
{
    struct gguf *header;
    struct gguf_fault unused;
    size_t file;
    int r = source_read_headers(verify->source, &header, &unused, &file);
    if (r < 0 && r != -EBADMSG)
        return device_fault_set(&job->fault, r, "pread", -r, strerror(-r));
    verify->stale = r == -EBADMSG || !gguf_same(verify->model->header, header);
    if (r == 0)
        gguf_free(header);
    return 0;
}

/* The first job: opens the files as they are now, and compares their sizes, times and headers with the loaded ones. */
static void verify_open(struct verify_job *job)
{
    struct verify *verify = job->verify;
    if (!verify->source)
        job->status = source_reopen(verify->loaded, &verify->source, &job->fault);
    if (job->status == 0) {
        verify->touched = !source_same(verify->loaded, verify->source);
        verify->stale = !source_same_sizes(verify->loaded, verify->source);
    }
    if (job->status == 0 && verify->touched && !verify->stale)
        job->status = compare_headers(verify, job);
    job->of_file = job->status < 0;
}

/* Still the first job: makes a plan, cut for buffers of VERIFY_BYTES. */
static void verify_plan(struct verify_job *job)
{
    struct verify *verify = job->verify;
    const struct model *model = verify->model;
    size_t tensor;
    job->status = plan_new(model->header, model->forms, model->device->granule, &verify->plan, &tensor);
    if (job->status == 0)
        job->status = plan_cut(verify->plan, VERIFY_BYTES, VERIFY_BYTES, false);
    if (job->status < 0)
        device_fault_set(&job->fault, 0, "plan", -job->status, strerror(-job->status));
}

static void verify_work(uv_work_t *work)
{
    struct verify_job *job = work->data;
    worker_step_back();
    if (job->chunk) {
        verify_chunk(job);
        return;
    }
    if (job->verify->planned)
        verify_check(job);
    else {
        verify_open(job);
        if (job->status == 0 && !job->verify->stale)
            verify_plan(job);
    }
}

/* Adds a mismatch to the reply. Each tensor is reported once, with the first difference that was found. */
static void verify_tell(struct verify *verify, size_t piece_index, uint64_t byte)
{
    uint32_t tensor = verify->plan->piece_tensors[piece_index];
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
    uint64_t piece_offset = verify->plan->pieces[piece_index].arena_offset - verify->plan->placements[tensor].offset;
    cJSON_AddNumberToObject(mismatch, "offset", (double)(piece_offset + byte));
    cJSON_AddItemToArray(verify->mismatches, mismatch);
}

/* The verification fails with the job's error. */
static void verify_fail(const struct verify_job *job)
{
    struct verify *verify = job->verify;
    if (job->of_file)
        failure_set_changed(&verify->failure, job->status, &job->fault, verify->loaded->path, "while-read");
    else if (!job->chunk && job->status == -ENOMEM) /* the daemon had no memory for the plan */
        failure_set(&verify->failure, WIRE_LimitExceeded, error_no_memory());
    else
        failure_set_device(&verify->failure, job->status, &job->fault);
}

static void verify_worked(uv_work_t *work, int status)
{
    (void)status;
    struct verify_job *job = work->data;
    struct verify *verify = job->verify;
    struct verifies *verifies = verify->verifies;
    verify->n_under_way--;
    verifies->n_jobs--;
    if (job->status < 0)
        verify_fail(job);
    else if (job->chunk)
        verify->done_bytes += job->chunk->model_bytes;
    else if (verify->planned)
        verify->checked = true;
    else if (verify->stale)
        verify->ending = true;
    else {
        verify->planned = true;
        verify_report(verify); /* at least one report, even if all is compared before the first tick */
    }
    if (job->status == -ENODEV && !job->of_file)
        residency_lose_device(verifies->residency, verify->model->device);
    for (size_t i = 0; i < job->n_differences; i++)
        verify_tell(verify, job->differences[i].piece, job->differences[i].byte);
    if (verify->done && job->n_differences > 0)
        verify->ending = true;
    job->chunk = NULL;
    verify_step(verify);
    verify_turn(verifies);
}

/* True if another job may be queued: verifications leave half of the workers to loads. */
static bool verify_may(const struct verifies *verifies)
{
    const unsigned workers = verifies->core->workers;
    return verifies->n_jobs < (workers > 2 ? workers / 2 : 1);
}

static void verify_queue(struct verify *verify, struct verify_job *job, const struct chunk *chunk)
{
    job->chunk = chunk;
    job->status = 0;
    job->n_differences = 0;
    job->of_file = false;
    verify->n_under_way++;
    verify->verifies->n_jobs++;
    worker_queue(verify->verifies->core->loop, &job->work, job, verify_work, verify_worked);
}

/* The file has other bytes than the model. verify_compare() leaves it to its caller to say so. */
static void verify_tell_changed(struct verify *verify)
{
    struct model *model = verify->model;
    failure_set_changed(&verify->failure, -ESTALE, NULL, verify->loaded->path, "since-loaded");
    if (verify->done || model->changed)
        return;
    model->changed = true;
    events_emit(verify->verifies->residency->events, "changed", model, NULL);
}

/* All is compared, or something ended it. */
static void verify_finish(struct verify *verify)
{
    struct call *call = verify->call;
    struct model *model = verify->model;
    const bool same =
        verify->checked && verify->failure.error == WIRE_OK && cJSON_GetArraySize(verify->mismatches) == 0;
    if (same && verify->touched && verify->moves)
        model_set_source(model, source_ref(verify->source));
    else if (same && verify->renewed)
        model_set_source(model, source_ref(verify->renewed));
    else if (same && !verify->replaced)
        model->changed = false;
    /* If somebody wrote to the file, it is the file that differs, and not the memory that is damaged. */
    if (verify->stale || (verify->touched && cJSON_GetArraySize(verify->mismatches) > 0))
        verify_tell_changed(verify);
    model_unhold(model);
    if (verify->done)
        verify->done(verify->context, same);
    residency_idle(verify->verifies->residency, model);
    if (call) {
        call->abandoned = NULL;
        if (verify->failure.error != WIRE_OK)
            call_fail(call, verify->failure.error, failure_parameters(&verify->failure));
        else {
            int mismatches = cJSON_GetArraySize(verify->mismatches);
            if (mismatches > 0)
                log_client(LOG_LEVEL_ERROR, "model=%s id=%llu verify: %d tensors differ from the file",
                           verify->model->name, (unsigned long long)verify->model->id, mismatches);
            cJSON *reply = cJSON_CreateObject();
            cJSON_AddNumberToObject(reply, "tensors", (double)verify->model->header->n_tensors);
            cJSON_AddNumberToObject(reply, "bytes", (double)verify->plan->model_bytes);
            cJSON_AddItemToObject(reply, "mismatches", verify->mismatches);
            verify->mismatches = NULL;
            cJSON_AddBoolToObject(reply, "replaced", verify->replaced);
            call_reply(call, reply, NULL, 0);
        }
    }
    verify_free(verify);
}

static void verify_step(struct verify *verify)
{
    bool over = verify->ending || verify->failure.error != WIRE_OK || verify->checked;
    for (size_t i = 0; i < VERIFY_JOBS && !over && verify_may(verify->verifies); i++) {
        if (!verify->planned || verify->next_chunk == verify->plan->n_chunks) {
            if (verify->n_under_way == 0)
                verify_queue(verify, &verify->jobs[0], NULL);
            break;
        }
        if (!verify->jobs[i].chunk)
            verify_queue(verify, &verify->jobs[i], &verify->plan->chunks[verify->next_chunk++]);
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
    verify->loaded = source_ref(model->source);
    verify->began = uv_hrtime();
    TAILQ_INSERT_TAIL(&verifies->list, verify, link);
    core_job_begin(verifies->core);
    verify->mismatches = cJSON_CreateArray();
    bool complete = verify->mismatches;
    for (size_t i = 0; i < VERIFY_JOBS; i++) {
        verify->jobs[i].verify = verify;
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
    uint64_t limit;
    int r = verify_new(verifies, model, call, &verify, &limit);
    if (r < 0) {
        call_fail(call, WIRE_LimitExceeded,
                  r == -EDQUOT ? error_limit(quota_name(QUOTA_VERIFIES), limit) : error_no_memory());
        return;
    }
    verify->call = call;
    verify->moves = true; /* they are the same files */
    model_hold(model);
    call->context = verify;
    call->abandoned = verify_abandoned;
    verify_step(verify);
}

int verify_compare(struct verifies *verifies, struct model *model, struct source *source, bool moves,
                   void (*done)(void *context, bool same), void *context)
{
    struct verify *verify;
    uint64_t unused;
    int r = verify_new(verifies, model, NULL, &verify, &unused);
    if (r < 0)
        return r;
    verify->source = source_ref(source);
    verify->moves = moves;
    verify->done = done;
    verify->context = context;
    model_hold(model);
    verify_step(verify);
    return 0;
}

static void verify_report(struct verify *verify)
{
    if (!verify->call || !verify->call->more || !verify->planned)
        return;
    const struct progress progress = {
        .done = verify->done_bytes,
        .total = verify->plan->model_bytes,
        .elapsed_ns = uv_hrtime() - verify->began,
    };
    cJSON *reply = cJSON_CreateObject();
    cJSON_AddItemToObject(reply, "progress", describe_progress("verifying", &progress));
    (void)call_continue(verify->call, reply);
}

void verifies_init(struct verifies *verifies)
{
    TAILQ_INIT(&verifies->list);
}

void verifies_report(struct verifies *verifies)
{
    struct verify *verify;
    TAILQ_FOREACH(verify, &verifies->list, link)
    {
        verify_report(verify);
    }
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
