#include "daemon/model/publication.h"

#include "daemon/base/json_memory.h"
#include "daemon/base/json_text.h"
#include "daemon/base/memory_file.h"
#include "daemon/model/manifest.h"
#include "proto/table.h"
#include "proto/write_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- the binary table --- */

static struct table_tensor table_tensor(const struct header_tensor *tensor, const struct tensor_place *place)
{
    struct table_tensor entry = {
        .name = tensor->name,
        .type_name = tensor->type->name,
        .offset = place->offset,
        .bytes = place->bytes,
        .padding = place->padding,
        .n_dims = tensor->n_dims,
        .type = tensor->type->id,
        .form = (uint32_t)place->form,
    };
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        entry.shape[i] = tensor->ne[tensor->n_dims - 1 - i];
    return entry;
}

/* A group as a tensor of its own: as `ret`, with names and numbers of its first member where they are the same. */
static struct table_tensor table_group(const struct plan *plan, const struct arranged_group *group)
{
    const uint32_t first = group->members[0], last = group->members[group->n_members - 1];
    struct header_tensor whole = plan->tensors[first];
    struct tensor_place place = plan->places[first];
    whole.name = group->name;
    whole.n_dims = group->n_dims;
    memcpy(whole.ne, group->ne, sizeof(whole.ne));
    place.bytes = plan_group_bytes(plan, group);
    place.padding = plan->places[last].padding;
    struct table_tensor entry = table_tensor(&whole, &place);
    entry.flags = TABLE_VIEW;
    return entry;
}

/* All tensors that clients see: those of the file, then the groups. The caller frees the array. NULL: no memory. */
static struct table_tensor *table_tensors(const struct plan *plan, size_t *ret_n)
{
    const struct arrangement *a = plan->arrangement;
    size_t n = plan->model->n_tensors;
    struct table_tensor *tensors = calloc(n + (a ? a->n_groups : 0) + 1, sizeof(*tensors));
    if (!tensors)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        tensors[i] = table_tensor(&plan->tensors[i], &plan->places[i]);
        if (a && a->group_of[i] != ARRANGED_ALONE)
            tensors[i].flags = TABLE_MEMBER;
        if (manifest_is_view(plan->manifest, i))
            tensors[i].flags |= TABLE_VIEW;
        tensors[i].strides = manifest_strides(plan->manifest, i);
    }
    for (size_t i = 0; a && i < a->n_groups; i++)
        if (a->groups[i].name)
            tensors[n++] = table_group(plan, &a->groups[i]);
    *ret_n = n;
    return tensors;
}

/* Sets the fault from a negative errno. Returns the error, which the caller returns. */
static int call_failed(struct device_fault *fault, int error, const char *call)
{
    return device_fault_set(fault, error, call, -error, strerror(-error));
}

static int put(int fd, const void *bytes, size_t size, struct device_fault *ret_fault)
{
    const int r = write_all(fd, bytes, size);
    return r < 0 ? call_failed(ret_fault, r, "write") : 0;
}

static int memfd_new(const char *name, int *ret, struct device_fault *ret_fault)
{
    int fd = memory_file_new(name);
    if (fd < 0)
        return call_failed(ret_fault, fd, "memfd_create");
    *ret = fd;
    return 0;
}

static int memfd_seal(int fd, struct device_fault *ret_fault)
{
    int r = memory_file_seal(fd);
    return r < 0 ? call_failed(ret_fault, r, "fcntl(F_ADD_SEALS)") : 0;
}

static int make_table(const struct plan *plan, struct publication *publication, struct device_fault *ret_fault)
{
    size_t n;
    struct table_tensor *tensors = table_tensors(plan, &n);
    if (!tensors)
        return -ENOMEM;
    void *table;
    size_t size;
    int r = table_build(tensors, n, plan->arena_bytes, &table, &size);
    free(tensors);
    if (r < 0)
        return device_fault_set(ret_fault, r, "table_build", -r, strerror(-r));
    r = memfd_new("rocmforge-table", &publication->table_fd, ret_fault);
    if (r == 0)
        r = put(publication->table_fd, table, size, ret_fault);
    if (r == 0)
        r = memfd_seal(publication->table_fd, ret_fault);
    free(table);
    publication->bytes += size;
    return r;
}

/* Of a model that has no file. */
static int write_manifest(const struct plan *plan, struct publication *publication, struct device_fault *ret_fault)
{
    char *text;
    size_t size;
    int r = manifest_header(plan, &text, &size);
    if (r < 0)
        return r;
    r = put(publication->header_fd, text, size, ret_fault);
    free(text);
    publication->bytes += size;
    return r < 0 ? r : memfd_seal(publication->header_fd, ret_fault);
}

static int make_header(const struct plan *plan, struct publication *publication, struct device_fault *ret_fault)
{
    int r = memfd_new("rocmforge-header", &publication->header_fd, ret_fault);
    if (r < 0)
        return r;
    if (plan->manifest)
        return write_manifest(plan, publication, ret_fault);
    r = model_header_write(plan->model, publication->header_fd);
    if (r < 0)
        return device_fault_set(ret_fault, r, "write", -r, strerror(-r));
    publication->bytes += plan->model->header_bytes;
    return memfd_seal(publication->header_fd, ret_fault);
}

/* --- JSON --- */

/* The text of a JSON array. Elements are written one after another, so there is never a cJSON tree of all elements. */
struct array {
    FILE *out;
    char *text;
    size_t size;
    size_t used;
};

static int array_begin(struct array *array)
{
    *array = (struct array){.used = 1};
    (void)json_memory_failed();
    array->out = open_memstream(&array->text, &array->size);
    if (!array->out)
        return -ENOMEM;
    fputc('[', array->out);
    return 0;
}

/* Writes one element and deletes it. element: NULL if it could not be allocated. Returns 0; -ENOSPC if the array would
 * then have more than `most` bytes; -ENOMEM. */
static int array_add(struct array *array, cJSON *element, size_t most)
{
    char *text = element ? cJSON_PrintUnformatted(element) : NULL;
    cJSON_Delete(element);
    if (!text || json_memory_failed()) {
        cJSON_free(text);
        return -ENOMEM;
    }
    const size_t size = strlen(text) + 1;
    const bool fits = size <= most - array->used;
    if (fits) {
        if (array->used > 1)
            fputc(',', array->out);
        fputs(text, array->out);
        array->used += size;
    }
    cJSON_free(text);
    return fits ? 0 : -ENOSPC;
}

/* Ends the array and returns its text, which the caller frees. NULL if there was no memory. */
static char *array_end(struct array *array)
{
    fputc(']', array->out);
    bool failed = ferror(array->out);
    if (fclose(array->out) != 0 || failed) {
        free(array->text);
        return NULL;
    }
    return array->text;
}

static cJSON *describe_tensor(const struct table_tensor *tensor)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "name", tensor->name);
    cJSON_AddStringToObject(object, "type", tensor->type_name);
    cJSON_AddStringToObject(object, "form", form_name((enum form)tensor->form));
    cJSON *shape = cJSON_AddArrayToObject(object, "shape");
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        json_append(shape, cJSON_CreateNumber((double)tensor->shape[i]));
    if (tensor->strides) {
        cJSON *strides = cJSON_AddArrayToObject(object, "strides");
        for (uint32_t i = 0; i < tensor->n_dims; i++)
            json_append(strides, cJSON_CreateNumber((double)tensor->strides[i]));
    }
    cJSON_AddNumberToObject(object, "offset", (double)tensor->offset);
    cJSON_AddNumberToObject(object, "size", (double)tensor->bytes);
    if (tensor->padding > 0)
        cJSON_AddNumberToObject(object, "padding", (double)tensor->padding);
    if (tensor->flags & TABLE_VIEW)
        cJSON_AddTrueToObject(object, "view");
    return object;
}

static int make_tensors(const struct plan *plan, struct publication *publication)
{
    struct array array;
    size_t n;
    struct table_tensor *tensors = table_tensors(plan, &n);
    if (!tensors)
        return -ENOMEM;
    if (array_begin(&array) < 0) {
        free(tensors);
        return -ENOMEM;
    }
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++)
        r = array_add(&array, describe_tensor(&tensors[i]), SIZE_MAX);
    free(tensors);
    publication->tensors = array_end(&array);
    publication->bytes += array.used;
    return r == 0 && publication->tensors ? 0 : -ENOMEM;
}

static cJSON *describe_entry(const struct header_kv *kv)
{
    char *key = strndup(kv->key.bytes, kv->key.size);
    cJSON *entry = key ? cJSON_CreateObject() : NULL;
    json_add_text(entry, "key", key);
    free(key);
    if (entry && header_kv_describe(kv, entry) == 0)
        return entry;
    cJSON_Delete(entry);
    return NULL;
}

static int make_entries(const struct header_kv *entries, size_t n_entries, struct publication *publication)
{
    struct array array;
    if (array_begin(&array) < 0)
        return -ENOMEM;
    int r = 0;
    size_t n = 0;
    for (; n < n_entries && r == 0; n++)
        r = array_add(&array, describe_entry(&entries[n]), PUBLICATION_METADATA_MAX);
    publication->n_left = n_entries - n + (r == -ENOSPC);
    publication->metadata = array_end(&array);
    publication->bytes += array.used;
    return r != -ENOMEM && publication->metadata ? 0 : -ENOMEM;
}

static int make_metadata(const struct plan *plan, struct publication *publication)
{
    struct header_kv entries[2];
    size_t n;
    char *text;
    if (!plan->manifest)
        return make_entries(plan->model->kv, plan->model->n_kv, publication);
    int r = manifest_entries(plan->manifest, entries, &n, &text);
    if (r < 0)
        return r;
    r = make_entries(entries, n, publication);
    free(text);
    return r;
}

/* All but the header. */
static int make_most(const struct plan *plan, struct publication *publication, struct device_fault *ret_fault)
{
    int r = make_table(plan, publication, ret_fault);
    if (r == 0)
        r = make_tensors(plan, publication);
    return r == 0 ? make_metadata(plan, publication) : r;
}

int publication_make(const struct plan *plan, struct publication *ret, struct device_fault *ret_fault)
{
    struct publication publication = PUBLICATION_NONE;
    int r = make_header(plan, &publication, ret_fault);
    if (r == 0)
        r = make_most(plan, &publication, ret_fault);
    if (r < 0) {
        publication_clear(&publication);
        return r;
    }
    *ret = publication;
    return 0;
}

int publication_resume(const struct plan *plan, int header_fd, struct publication *ret, struct device_fault *ret_fault)
{
    struct publication publication = PUBLICATION_NONE;
    const int r = make_most(plan, &publication, ret_fault);
    if (r < 0) {
        publication_clear(&publication);
        return r;
    }
    publication.header_fd = header_fd;
    publication.bytes += plan->model->header_bytes;
    *ret = publication;
    return 0;
}

void publication_clear(struct publication *publication)
{
    if (publication->table_fd >= 0)
        close(publication->table_fd);
    if (publication->header_fd >= 0)
        close(publication->header_fd);
    free(publication->tensors);
    free(publication->metadata);
    *publication = PUBLICATION_NONE;
}
