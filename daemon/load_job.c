#include "daemon/load_job.h"

#include "daemon/split.h"
#include "proto/table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void load_job_identify(struct load_job *job)
{
    size_t n = job->n_fds;
    job->n_fds = 0;
    job->status = n > 0 ? source_open_fds(job->fds, n, &job->source, &job->fault)
                        : source_open_path(job->path, &job->source, &job->fault);
}

/* The device has a kernel for everything that is to be decoded; also if nothing is. */
static bool device_decodes_all(struct device *device, const struct plan *plan)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        if (plan->placements[i].convert != FORM_NATIVE &&
            !device->ops->decodes(device, plan->model->tensors[i].type, plan->placements[i].convert))
            return false;
    return true;
}

static bool converts_nothing(const struct plan *plan)
{
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        if (plan->placements[i].convert != FORM_NATIVE)
            return false;
    return true;
}

/* Cuts the plan for the device's slots: the file's bytes as they stand where nothing is decoded on the CPU. */
static int cut(struct load_job *job)
{
    bool verbatim = converts_nothing(job->plan) || (!job->decode_on_cpu && device_decodes_all(job->device, job->plan));
    return plan_cut(job->plan, job->device->slot_bytes, job->device->part_bytes, verbatim);
}

void load_job_open(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    job->status = split_read(job->opened, &job->header, &job->gguf_fault, &job->file);
    if (job->status == 0)
        job->status = plan_new(job->header, job->form, job->device->granule, &job->plan, &job->tensor);
    else
        device_fault_set(&job->fault, 0, "pread", -job->status, strerror(-job->status));
    if (job->status == 0)
        job->status = cut(job);
    job->elapsed_ns = uv_hrtime() - begin;
}

static void take_arena(struct load_job *job, const struct extent *gaps, size_t n_gaps)
{
    struct device *device = job->device;
    job->status = device->ops->arena_new(device, job->planned->arena_bytes, gaps, n_gaps, &job->arena, &job->fault);
    struct device_fault unused;
    if (job->status == -ENOMEM && device->ops->memory_free(device, &job->memory_free, &unused) < 0)
        job->memory_free = 0;
}

void load_job_allocate(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    struct extent *gaps;
    size_t n_gaps;
    job->status = plan_gaps(job->planned, &gaps, &n_gaps);
    if (job->status < 0) {
        device_fault_set(&job->fault, 0, "malloc", ENOMEM, strerror(ENOMEM));
        return;
    }
    take_arena(job, gaps, n_gaps);
    free(gaps);
    job->elapsed_ns = uv_hrtime() - begin;
}

void load_job_reallocate(struct load_job *job)
{
    uint64_t begin = uv_hrtime();
    job->status = plan_linear(job->planned->arena_bytes, job->device->slot_bytes, &job->plan);
    if (job->status < 0) {
        device_fault_set(&job->fault, 0, "malloc", ENOMEM, strerror(ENOMEM));
        return;
    }
    take_arena(job, NULL, 0);
    job->elapsed_ns = uv_hrtime() - begin;
}

static struct table_tensor table_tensor(const struct gguf_tensor *tensor, const struct placement *placement)
{
    struct table_tensor entry = {
        .name = tensor->name,
        .offset = placement->offset,
        .bytes = placement->bytes,
        .n_dims = tensor->n_dims,
        .type = tensor->type->id,
        .form = (uint32_t)placement->form,
    };
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        entry.shape[i] = tensor->ne[tensor->n_dims - 1 - i];
    return entry;
}

static int sealed_memfd(const char *name, const void *data, size_t size, int *ret)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    const uint8_t *at = data;
    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int error = errno;
            close(fd);
            return -error;
        }
        at += n;
        size -= (size_t)n;
    }
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    *ret = fd;
    return 0;
}

static int table_memfd(const struct plan *plan, int *ret)
{
    size_t n = plan->model->n_tensors;
    struct table_tensor *tensors = calloc(n ? n : 1, sizeof(*tensors));
    if (!tensors)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        tensors[i] = table_tensor(&plan->model->tensors[i], &plan->placements[i]);
    void *table;
    size_t size;
    int r = table_build(tensors, n, plan->arena_bytes, &table, &size);
    free(tensors);
    if (r < 0)
        return r;
    r = sealed_memfd("rocmforge-table", table, size, ret);
    free(table);
    return r;
}

void load_job_seal(struct load_job *job)
{
    if (job->opened) {
        job->status = source_check_untouched(job->opened, &job->fault);
        if (job->status < 0)
            return;
        job->status = table_memfd(job->planned, &job->table_fd);
        if (job->status < 0) {
            device_fault_set(&job->fault, 0, "memfd_create", -job->status, strerror(-job->status));
            return;
        }
    }
    job->status = job->device->ops->arena_export(job->filled, &job->export, &job->fault);
}

void load_job_nothing(struct load_job *job)
{
    (void)job;
}

void load_job_release(struct load_job *job)
{
    job->device->ops->arena_free(job->filled);
    job->filled = NULL;
}

const char *load_job_name(const struct load_job *job)
{
    if (job->run == load_job_identify)
        return "identify";
    if (job->run == load_job_open)
        return "parse";
    if (job->run == load_job_allocate || job->run == load_job_reallocate)
        return "allocate";
    return job->run == load_job_seal ? "seal" : job->run == load_job_release ? "release" : "wait";
}

void load_job_clear(struct load_job *job)
{
    while (job->n_fds > 0)
        close(job->fds[--job->n_fds]);
    if (job->table_fd >= 0)
        close(job->table_fd);
    job->table_fd = -1;
    plan_free(job->plan);
    gguf_free(job->header);
    source_free(job->source);
    job->plan = NULL;
    job->header = NULL;
    job->source = NULL;
}
