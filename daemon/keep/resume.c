#include "daemon/keep/resume.h"

#include "daemon/format/format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

/* What is made on the way, and freed if a later step fails. */
struct resumed {
    struct device *device;
    struct source *source;
    struct model_header *header;
    struct plan *plan;
    struct manifest *manifest; /* of a published model */
    struct publication published;
    struct arena *arena;
    struct device_export export;
};

static int refuse(char why[RESUME_WHY_SIZE], int error, const char *text)
{
    snprintf(why, RESUME_WHY_SIZE, "%s", text);
    return error;
}

static int refuse_fault(char why[RESUME_WHY_SIZE], int error, const char *what, const struct device_fault *fault)
{
    snprintf(why, RESUME_WHY_SIZE, "%s: %s: %s", what, fault->call, fault->text);
    return error;
}

static void close_all(int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

static struct device *find_same(const struct devices *devices, const char *kind, const char *uuid, const char *pci,
                                const char *id)
{
    for (size_t i = 0; i < devices->n; i++)
        if (device_same(devices->devices[i], kind, uuid, pci, id))
            return devices->devices[i];
    return NULL;
}

/* Whether memory can be taken over on it. NULL: the device is not there. */
static int check_device(const struct device *device, char why[RESUME_WHY_SIZE])
{
    if (!device)
        return refuse(why, -ENODEV, "its device is not there any more, or is another one");
    if (device->failed || device->export_kind == EXPORT_IPC)
        return refuse(why, -ENODEV, "its device exports no descriptors now");
    return 0;
}

static int find_device(const struct resume *resume, struct resumed *resumed, char why[RESUME_WHY_SIZE])
{
    const struct description *d = resume->description;
    resumed->device = find_same(resume->devices, d->device_kind, d->device_uuid, d->device_pci, d->device_id);
    if (!resumed->device && resume->awaited && !device_kind_is_host(d->device_kind)) {
        const struct awaited_gpu gpu = {.id = d->device_id,
                                        .kind = d->device_kind,
                                        .name = d->device_name,
                                        .uuid = d->device_uuid,
                                        .pci = d->device_pci,
                                        .total = d->device_total,
                                        .budget = d->device_budget,
                                        .granule = d->granule,
                                        .link = d->device_link};
        resumed->device = awaited_get(resume->awaited, &gpu);
        if (!resumed->device)
            return refuse(why, -ENOMEM, "out of memory");
    }
    return check_device(resumed->device, why);
}

static int check_descriptors(const struct resume *resume, char why[RESUME_WHY_SIZE])
{
    const struct description *description = resume->description;
    bool all = resume->arena_fd >= 0;
    for (size_t i = 0; i < description->n_headers; i++)
        all = all && resume->header_fds[i] >= 0;
    for (size_t i = 0; i < description->n_files; i++)
        all = all && resume->file_fds[i] >= 0;
    if (!all)
        return refuse(why, -ENOENT, "not all of its descriptors were kept");
    for (size_t i = 0; i < description->n_headers; i++) {
        struct stat status;
        if (!description_sealed(resume->header_fds[i]) || fstat(resume->header_fds[i], &status) < 0)
            return refuse(why, -EPERM, "its header is not sealed");
        if ((uint64_t)status.st_size != description->headers[i].bytes)
            return refuse(why, -EMSGSIZE, "its header has another length");
    }
    return 0;
}

static int take_source(struct resume *resume, struct resumed *resumed, char why[RESUME_WHY_SIZE])
{
    const struct description *description = resume->description;
    struct identity identities[SOURCE_FILES_MAX];
    const char *paths[SOURCE_FILES_MAX];
    bool seen[SOURCE_FILES_MAX], named[SOURCE_FILES_MAX];
    int fds[SOURCE_FILES_MAX];
    if (description->n_files == 0)
        return source_none(&resumed->source) < 0 ? refuse(why, -ENOMEM, "out of memory") : 0;
    for (size_t i = 0; i < description->n_files; i++) {
        identities[i] = description->files[i].identity;
        paths[i] = description->files[i].path;
        seen[i] = description->files[i].seen;
        named[i] = description->files[i].named;
        fds[i] = resume->file_fds[i];
        resume->file_fds[i] = -1;
    }
    struct device_fault fault;
    const struct source_past past = {
        .identities = identities,
        .paths = paths,
        .seen = seen,
        .named = named,
        .link = description->link,
    };
    const int r = source_resume(fds, description->n_files, &past, &resumed->source, &fault);
    return r < 0 ? refuse_fault(why, r, "its files", &fault) : 0;
}

/* The headers are read in the order of the files, because that is what the tensors' `shard` counts. */
static int read_headers(const struct resume *resume, struct model_header **ret)
{
    const struct description *description = resume->description;
    struct header_fault unused;
    struct header_file files[SOURCE_FILES_MAX];
    size_t unused_file;
    if (description->n_headers != description->n_files)
        return -EBADMSG;
    for (size_t i = 0; i < description->n_files; i++)
        files[i].fd = -1;
    for (size_t i = 0; i < description->n_headers; i++)
        files[description->headers[i].shard] =
            (struct header_file){resume->header_fds[i], description->headers[i].file_size};
    for (size_t i = 0; i < description->n_files; i++)
        if (files[i].fd < 0)
            return -EBADMSG;
    return format_read(files, description->n_files, ret, &unused, &unused_file);
}

static int check_tensors(const struct description *description, struct model_header *header)
{
    if (header->n_tensors != description->n_tensors)
        return -EBADMSG;
    for (size_t i = 0; i < header->n_tensors; i++) {
        struct header_tensor *tensor = &header->tensors[i];
        const struct description_tensor *told = &description->tensors[i];
        const uint64_t size = description->files[told->shard].identity.size;
        if (tensor->bytes != told->file_bytes || told->file_offset > size ||
            told->file_bytes > size - told->file_offset)
            return -EBADMSG;
        tensor->offset = told->file_offset;
        tensor->shard = told->shard;
    }
    return 0;
}

/* Makes the chunks for the device's slots. */
static int cut(struct plan *plan, struct device *device, char why[RESUME_WHY_SIZE])
{
    const int r = plan_cut_for(plan, device, false);
    return r < 0 ? refuse(why, r, "out of memory") : 0;
}

static int lay_out(const struct resume *resume, struct resumed *resumed, char why[RESUME_WHY_SIZE])
{
    const struct description *description = resume->description;
    struct tensor_place *places = calloc(description->n_tensors ? description->n_tensors : 1, sizeof(*places));
    if (!places)
        return refuse(why, -ENOMEM, "out of memory");
    for (size_t i = 0; i < description->n_tensors; i++)
        places[i] = description->tensors[i].place;
    int r = plan_resume(resumed->header, description->layout, &description->heads, places, description->arena_bytes,
                        &resumed->plan);
    free(places);
    if (r < 0)
        return refuse(why, r, "its tensors cannot be where its description says");
    return device_is_awaited(resumed->device) ? 0 : cut(resumed->plan, resumed->device, why);
}

/* Of a published model: all is in its manifest, which is read as if anybody had written it. */
static int read_manifest(const struct resume *resume, struct resumed *resumed)
{
    char *text;
    size_t size;
    struct manifest_parsed made;
    int r = manifest_text_read(resume->header_fds[0], MANIFEST_HEADER_MAX, &text, &size);
    if (r < 0)
        return r;
    r = manifest_read_header(text, size, resume->description->arena_bytes, &made);
    free(text);
    if (r < 0)
        return r;
    resumed->header = made.header;
    resumed->plan = made.plan;
    resumed->manifest = made.manifest;
    resumed->source->size = made.plan->model_bytes;
    return 0;
}

static int take_header(struct resume *resume, struct resumed *resumed, char why[RESUME_WHY_SIZE])
{
    const bool published = resume->description->n_files == 0;
    int r = published ? read_manifest(resume, resumed) : read_headers(resume, &resumed->header);
    if (r == 0 && !published)
        r = check_tensors(resume->description, resumed->header);
    if (r < 0)
        return refuse(why, r, "its header is not the one that was kept");
    r = published ? 0 : lay_out(resume, resumed, why);
    struct device_fault fault = {.text = "out of memory"};
    if (r == 0) {
        r = publication_resume(resumed->plan, resume->header_fds[0], &resumed->published, &fault);
        if (r < 0)
            return refuse_fault(why, r, "its table", &fault);
        resume->header_fds[0] = -1;
    }
    return r;
}

static int take_arena(struct resume *resume, struct resumed *resumed, char why[RESUME_WHY_SIZE])
{
    struct device_fault fault;
    const int r = device_arena_adopt(resumed->device, resume->arena_fd, resume->description->arena_bytes,
                                     &resumed->arena, &resumed->export, &fault);
    if (r < 0)
        return refuse_fault(why, r, "its memory", &fault);
    resume->arena_fd = -1;
    return 0;
}

static void resumed_free(struct resumed *resumed)
{
    if (resumed->arena)
        device_arena_free(resumed->device, resumed->arena, resumed->plan->arena_bytes);
    publication_clear(&resumed->published);
    plan_free(resumed->plan);
    model_header_free(resumed->header);
    manifest_free(resumed->manifest);
    source_free(resumed->source);
}

static struct model *model_new(const struct description *description, const struct resumed *resumed)
{
    struct model *model = calloc(1, sizeof(*model));
    char *origin = description->origin ? strdup(description->origin) : NULL;
    const char *told = resumed->manifest ? resumed->manifest->key : NULL;
    char *key = told ? strdup(told) : NULL;
    uid_t *guests = calloc(description->n_guests ? description->n_guests : 1, sizeof(*guests));
    if (!model || !guests || (description->origin && !origin) || (told && !key)) {
        free(model);
        free(key);
        free(origin);
        free(guests);
        return NULL;
    }
    memcpy(guests, description->guests, description->n_guests * sizeof(*guests));
    *model = (struct model){
        .key = key,
        .origin = origin,
        .state = MODEL_OPENING,
        .forms = forms_ref(description->forms),
        .layout = layout_ref(description->layout),
        .device = resumed->device,
        .uid = description->uid,
        .pinned = description->pinned,
        .ttl = description->ttl,
        .access = description->access,
        .facts = access_facts_ref(description->facts),
        .guests = guests,
        .n_guests = description->n_guests,
        .source = resumed->source,
        .changed = description->changed,
        .deleted = description->deleted,
        .header = resumed->header,
        .manifest = resumed->manifest,
        .plan = resumed->plan,
        .arena = resumed->arena,
        .export = resumed->export,
        .published = resumed->published,
        .overflows = description->overflows,
        .idle_since = uv_hrtime(),
    };
    memcpy(model->token, description->token, sizeof(model->token));
    LIST_INIT(&model->leases);
    return model;
}

/* Frees a model that the registry did not take, but not the parts. */
static void model_drop(struct model *model)
{
    free(model->origin);
    free(model->key);
    free(model->guests);
    forms_unref(model->forms);
    layout_unref(model->layout);
    access_facts_unref(model->facts);
    free(model);
}

static int enter(struct resume *resume, struct resumed *resumed, struct model **ret, char why[RESUME_WHY_SIZE])
{
    const struct description *description = resume->description;
    struct model *model = model_new(description, resumed);
    if (!model)
        return refuse(why, -ENOMEM, "out of memory");
    const int r = registry_resume(resume->registry, model, description->id, description->names, description->n_names);
    if (r < 0) {
        model_drop(model);
        return refuse(why, r, r == -EEXIST ? "there is another model with its number" : "out of memory");
    }
    registry_reserve(model, resumed->plan->arena_bytes);
    registry_charge(model, devices_host(resume->devices),
                    model_header_memory(model->header) + plan_memory(model->plan) + manifest_memory(model->manifest) +
                        model->published.bytes);
    model_move(model, MODEL_RESIDENT);
    *ret = model;
    return 0;
}

int resume_model(struct resume *resume, struct model **ret, char why[RESUME_WHY_SIZE])
{
    struct resumed resumed = {.published = PUBLICATION_NONE, .export = {.fd = -1}};
    int r = find_device(resume, &resumed, why);
    if (r == 0)
        r = check_descriptors(resume, why);
    if (r == 0)
        r = take_source(resume, &resumed, why);
    if (r == 0)
        r = take_header(resume, &resumed, why);
    if (r == 0)
        r = take_arena(resume, &resumed, why);
    if (r == 0)
        r = enter(resume, &resumed, ret, why);
    if (r < 0)
        resumed_free(&resumed);
    close_all(&resume->arena_fd, 1);
    close_all(resume->header_fds, resume->description->n_headers);
    close_all(resume->file_fds, resume->description->n_files);
    return r;
}

/* The chunks need the device's slots. */
static int settle_plan(struct model *model, struct devices *devices, struct device *device, char why[RESUME_WHY_SIZE])
{
    if (model_is_published(model))
        return 0;
    const uint64_t before = plan_memory(model->plan);
    const int r = cut(model->plan, device, why);
    if (r == 0)
        registry_charge(model, devices_host(devices), plan_memory(model->plan) - before);
    return r;
}

int resume_settle(struct model *model, struct devices *devices, char why[RESUME_WHY_SIZE])
{
    struct device *stands_in = model->device;
    struct device *device = find_same(devices, stands_in->kind, stands_in->uuid, stands_in->pci, stands_in->id);
    int r = check_device(device, why);
    if (r == 0)
        r = settle_plan(model, devices, device, why);
    if (r < 0)
        return r;
    const uint64_t bytes = model->plan->arena_bytes;
    struct arena *arena;
    struct device_export export;
    struct device_fault fault;
    const int fd = fcntl(model->export.fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return refuse(why, -errno, "no descriptor is left");
    r = device_arena_adopt(device, fd, bytes, &arena, &export, &fault);
    if (r < 0) {
        close(fd);
        return refuse_fault(why, r, "its memory", &fault);
    }
    registry_unreserve(model);
    device_arena_free(stands_in, model->arena, bytes);
    model->device = device;
    model->arena = arena;
    model->export = export;
    registry_reserve(model, bytes);
    return 0;
}
