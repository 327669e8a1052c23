#include "daemon/load/steps.h"

#include "daemon/base/closer.h"
#include "daemon/gguf/gguf.h"
#include "daemon/model/access_read.h"
#include "daemon/model/common_path.h"
#include "daemon/model/source_compare.h"
#include "daemon/model/source_look.h"
#include "daemon/model/source_sort.h"
#include "proto/model_config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Paths are opened with the daemon's rights. A trusted user may load any file that the daemon can open. For other users
 * the daemon opens only files that everybody may read, by paths that everybody can follow; a daemon that runs as root
 * opens no path for them. The error is the same in all these cases, so that they do not learn which files exist. */
static void open_path(struct load_job *job)
{
    const bool judges = geteuid() != 0 && (job->trusted || common_path_check(job->path) == 0);
    if (job->trusted || judges)
        job->status = source_open_path(job->path, &job->source, &job->ambiguous, &job->fault);
    if ((job->trusted || judges) && job->status == 0)
        job->status = access_read(job->source, NULL, &job->facts, &job->fault);
    if (job->trusted || (judges && job->status == 0 && access_permits_all(job->facts)))
        return;
    source_discard(job->source);
    job->source = NULL;
    shard_paths_free(&job->ambiguous);
    job->status = -EACCES;
    job->refused = true;
}

void load_job_identify(struct load_job *job)
{
    size_t n = job->n_fds;
    job->n_fds = 0;
    worker_file_begin();
    if (n > 0)
        job->status = source_open_fds(job->fds, n, &job->source, &job->fault);
    else
        open_path(job);
    if (n > 0 && job->status == 0)
        source_sort_by_names(job->source);
    if (n > 0 && job->status == 0)
        job->status = access_read(job->source, NULL, &job->facts, &job->fault);
    if (job->source)
        source_set_owner(job->source, job->closer, job->uid);
    worker_file_end();
}

static int plan_model(struct load_job *job)
{
    struct model_heads heads = heads_told(job->header, job->layout);
    char *text;
    size_t size;
    if (heads_needed(job->header, job->layout) &&
        source_read_beside(job->opened, MODEL_CONFIG_NAME, MODEL_CONFIG_MAX, &text, &size) == 0) {
        heads_read_config(text, size, &heads);
        free(text);
    }
    return plan_new_arranged(job->header, job->forms, job->layout, &heads, job->device->granule, &job->plan,
                             &job->tensor, &job->layout_fault);
}

void load_job_lay_out(struct load_job *job)
{
    job->status = source_read_headers(job->opened, &job->header, &job->header_fault, &job->file);
    if (job->status == 0)
        job->status = plan_model(job);
    else
        device_fault_set(&job->fault, 0, "pread", -job->status, strerror(-job->status));
}

void load_job_ask(struct load_job *job)
{
    for (size_t i = 0; i < job->among->n; i++) {
        struct device_fault unused;
        if (device_survey(job->among->devices[i], &job->reach[i], &unused) < 0)
            job->reach[i] = 0;
    }
}

static bool fits_any(const struct load_job *job)
{
    for (size_t i = 0; i < job->among->n; i++)
        if (job->plan->arena_bytes <= job->among->devices[i]->budget)
            return true;
    return false;
}

void load_job_open(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    job->sorted = source_sort_by_contents(job->opened);
    if (job->sorted)
        job->opened = job->sorted;
    load_job_lay_out(job);
    if (job->status == 0 && fits_any(job))
        job->status = plan_cut_for(job->plan, job->device, job->decode_on_cpu);
    if (job->status == 0)
        load_job_ask(job);
    job->elapsed_ns = uv_hrtime() - begin;
}

static int read_again(struct load_job *job)
{
    struct model_header *header;
    if (!source_same_sizes(job->opened, job->source))
        return -ESTALE;
    int r = source_read_headers(job->source, &header, &job->header_fault, &job->file);
    if (r < 0)
        return r == -EBADMSG || r == -ENODATA ? -ESTALE : r;
    const bool same = model_header_same(job->known, header);
    model_header_free(header);
    return same ? 0 : -ESTALE;
}

void load_job_look_again(struct load_job *job)
{
    job->status = source_check_untouched(job->opened, &job->fault);
    if (job->status != -ESTALE)
        return;
    job->status = source_reopen(job->opened, &job->source, &job->fault);
    if (job->status < 0)
        return;
    job->status = read_again(job);
    if (job->status == 0)
        return;
    device_fault_set(&job->fault, 0, "pread", -job->status, strerror(-job->status));
    source_discard(job->source);
    job->source = NULL;
}

static void take_arena(struct load_job *job, const struct extent *gaps, size_t n_gaps)
{
    struct device *device = job->device;
    job->status = device_arena_new(device, job->planned->arena_bytes, gaps, n_gaps, &job->arena, &job->fault);
    struct device_fault unused;
    if (job->status == -ENOMEM && device_memory_free(device, &job->memory_free, &unused) < 0)
        job->memory_free = 0;
}

void load_job_allocate(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    struct extent *gaps;
    size_t n_gaps;
    if (job->planned->manifest) { /* the client gets all of it before anything is written */
        const struct extent all = {.bytes = job->planned->arena_bytes};
        take_arena(job, &all, 1);
        job->of_host = false;
        job->elapsed_ns = uv_hrtime() - begin;
        return;
    }
    job->status = plan_gaps(job->planned, &gaps, &n_gaps);
    job->of_host = job->status == -ENOMEM;
    if (job->status < 0)
        return;
    take_arena(job, gaps, n_gaps);
    free(gaps);
    job->elapsed_ns = uv_hrtime() - begin;
}

/* How many bytes of a copy in pinned memory go to the device in one transfer. These need no slot. Between two transfers
 * the bus is idle for a moment, so a transfer is large. */
#define PINNED_CHUNK ((size_t)64 << 20)

void load_job_reallocate(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    plan_free(job->plan); /* from an earlier attempt */
    job->plan = NULL;
    const size_t chunk = job->pinned ? PINNED_CHUNK : job->device->slot_bytes;
    job->status = plan_linear(job->planned->arena_bytes, chunk, &job->plan);
    job->of_host = job->status == -ENOMEM;
    if (job->status < 0)
        return;
    take_arena(job, NULL, 0);
    job->elapsed_ns = uv_hrtime() - begin;
}

void load_job_publish(struct load_job *job)
{
    if (job->opened) {
        job->status = publication_make(job->planned, &job->published, &job->fault);
        job->of_host = job->status == -ENOMEM;
        if (job->status < 0)
            return;
        gguf_prepare();
    }
    job->status = device_arena_export(job->device, job->filled, &job->export, &job->fault);
}

void load_job_seal(struct load_job *job)
{
    if (job->opened)
        job->status = source_check_untouched(job->opened, &job->fault);
    job->of_file = job->status < 0;
    if (job->status == 0)
        job->status = device_arena_seal(job->device, job->filled, &job->fault);
    struct device_fault unused;
    if (job->status == 0 && job->judged && access_read(job->judged, job->before, &job->facts, &unused) < 0)
        job->facts = NULL;
}

void load_job_nothing(struct load_job *job)
{
    (void)job;
}

void load_job_release(struct load_job *job)
{
    device_arena_free(job->device, job->filled, job->planned->arena_bytes);
    job->filled = NULL;
}

bool load_job_uses_files(const struct load_job *job)
{
    return job->run == load_job_identify || job->run == load_job_lay_out || job->run == load_job_open ||
           job->run == load_job_look_again || job->run == load_job_seal;
}

const char *load_job_name(const struct load_job *job)
{
    if (job->run == load_job_identify)
        return "identify";
    if (job->run == load_job_open)
        return "parse";
    if (job->run == load_job_allocate || job->run == load_job_reallocate)
        return "allocate";
    if (job->run == load_job_publish)
        return "publish";
    if (job->run == load_job_look_again)
        return "look-again";
    if (job->run == load_job_ask)
        return "ask";
    return job->run == load_job_seal ? "seal" : job->run == load_job_release ? "release" : "wait";
}

void load_job_forget(struct load_job *job)
{
    plan_free(job->plan);
    model_header_free(job->header);
    job->plan = NULL;
    job->header = NULL;
}

void load_job_clear(struct load_job *job)
{
    assert(!job->arena);
    while (job->n_fds > 0)
        closer_close(job->closer, job->uid, job->fds[--job->n_fds]);
    publication_clear(&job->published);
    manifest_parsed_free(&job->parsed);
    free(job->text);
    job->text = NULL;
    load_job_forget(job);
    source_free(job->source);
    source_free(job->sorted);
    shard_paths_free(&job->ambiguous);
    access_facts_unref(job->facts);
    access_facts_unref(job->before);
    job->before = NULL;
    job->source = job->sorted = NULL;
    job->facts = NULL;
}
