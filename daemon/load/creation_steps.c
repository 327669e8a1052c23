/* The steps of a creation that block. */
#include "daemon/load/client_text.h"
#include "daemon/load/steps.h"
#include "daemon/model/manifest.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Sets the fault of a text that cannot be read. */
static int text_failed(struct load_job *job, int error, const char *what)
{
    job->manifest_fault.tensor = SIZE_MAX;
    const char *why = error == -EPERM    ? "is no file in memory that is sealed against writing and shrinking"
                      : error == -E2BIG  ? "is too long"
                      : error == -EINVAL ? "is not UTF-8, or has a NUL in it"
                                         : strerror(-error);
    snprintf(job->manifest_fault.reason, sizeof(job->manifest_fault.reason), "%s %s", what, why);
    return error == -ENOMEM ? -ENOMEM : -EBADMSG;
}

/* The text, with a NUL behind it; *ret_own: for the caller to free, unless NULL. */
static int text_get(const struct client_text *text, size_t most, const char **ret, size_t *ret_size, char **ret_own)
{
    *ret_own = NULL;
    if (text->text) {
        *ret = text->text;
        *ret_size = text->size;
        return text->size > most ? -E2BIG : 0;
    }
    int r = manifest_text_read(text->fd, most, ret_own, ret_size);
    *ret = *ret_own;
    return r;
}

void load_job_no_source(struct load_job *job)
{
    job->status = source_none(&job->source);
}

static int parse_tensors(struct load_job *job)
{
    const char *text;
    char *own = NULL;
    size_t size;
    if (!client_text_given(job->tensors))
        return manifest_parse_none(job->bytes, job->device->granule, &job->parsed, &job->manifest_fault);
    int r = text_get(job->tensors, MANIFEST_TENSORS_TEXT_MAX, &text, &size, &own);
    if (r < 0)
        return text_failed(job, r, "the list of tensors");
    /* Without a byte the parser would take it for no list at all. */
    r = manifest_parse(size ? text : " ", size ? size : 1, job->bytes, job->device->granule, &job->parsed,
                       &job->manifest_fault);
    free(own);
    return r;
}

void load_job_manifest(struct load_job *job)
{
    const uint64_t begin = uv_hrtime();
    job->status = parse_tensors(job);
    if (job->status == 0)
        load_job_ask(job);
    job->elapsed_ns = uv_hrtime() - begin;
}

/* The offsets of the tensors as a JSON array. */
static char *offsets_text(const struct plan *plan)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    fputc('[', out);
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        fprintf(out, "%s%" PRIu64, i ? "," : "", plan->places[i].offset);
    fputc(']', out);
    const int failed = ferror(out);
    if (fclose(out) == 0 && !failed)
        return text;
    free(text);
    return NULL;
}

void load_job_lend(struct load_job *job)
{
    job->text = offsets_text(job->planned);
    job->of_host = !job->text;
    job->status = job->text ? device_arena_lend(job->device, job->filled, &job->export, &job->fault) : -ENOMEM;
}

/* Reads the metadata into the manifest that will be published. */
static int take_metadata(struct load_job *job, struct manifest *manifest)
{
    const char *text = NULL;
    char *own = NULL;
    size_t size = 0;
    free(manifest->metadata); /* of an earlier attempt */
    manifest->metadata = NULL;
    if (!client_text_given(job->metadata))
        return 0;
    int r = text_get(job->metadata, MANIFEST_METADATA_MAX, &text, &size, &own);
    if (r == 0 && !manifest_text_valid(text, size, MANIFEST_METADATA_MAX))
        r = -EINVAL;
    if (r == 0 && size > 0) {
        assert(text);
        manifest->metadata = own ? own : strndup(text, size);
        r = manifest->metadata ? 0 : -ENOMEM;
        own = NULL;
    }
    free(own);
    return r < 0 ? text_failed(job, r, "the metadata") : 0;
}

static int take_key(const struct load_job *job, struct manifest *manifest)
{
    if (job->key && !manifest->key)
        manifest->key = strdup(job->key);
    return job->key && !manifest->key ? -ENOMEM : 0;
}

void load_job_publish_creation(struct load_job *job)
{
    job->of_file = job->of_host = false;
    job->status = client_text_given(job->tensors) ? parse_tensors(job) : 0;
    struct manifest *manifest = job->parsed.manifest ? job->parsed.manifest : job->manifest;
    const struct plan *plan = job->parsed.plan ? job->parsed.plan : job->planned;
    if (job->status == 0)
        job->status = take_metadata(job, manifest);
    if (job->status == 0)
        job->status = take_key(job, manifest);
    job->of_file = job->status < 0;
    if (job->status == 0) {
        job->status = publication_make(plan, &job->published, &job->fault);
        job->of_host = job->status == -ENOMEM;
    }
    if (job->status == 0)
        job->status = device_arena_seal(job->device, job->filled, &job->fault);
}
