#include "daemon/base/json_memory.h"
#include "daemon/base/memory_file.h"
#include "daemon/keep/bytes.h"
#include "daemon/keep/description.h"
#include "proto/write_all.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static void put_identity(struct bytes_writer *out, const struct identity *identity)
{
    bytes_put_number(out, identity->dev);
    bytes_put_number(out, identity->ino);
    bytes_put_number(out, identity->size);
    bytes_put_number(out, (uint64_t)identity->mtime_ns);
    bytes_put_number(out, (uint64_t)identity->ctime_ns);
}

static void put_users(struct bytes_writer *out, const struct model *model)
{
    bytes_put_number(out, model->n_names);
    const struct model_name *name;
    TAILQ_FOREACH(name, &model->names, link)
    {
        bytes_put_number(out, name->since);
        bytes_put_number(out, name->uid);
        bytes_put_text(out, name->text);
    }
    bytes_put_number(out, model->n_guests);
    for (size_t i = 0; i < model->n_guests; i++)
        bytes_put_number(out, model->guests[i]);
}

static void put_facts(struct bytes_writer *out, const struct access_facts *facts)
{
    bytes_put_number(out, facts != NULL);
    if (!facts)
        return;
    bytes_put_number(out, facts->placed);
    bytes_put_number(out, facts->n_files);
    bytes_put_number(out, facts->n_folders);
    for (size_t i = 0; i < facts->n_files + facts->n_folders; i++) {
        const struct access_entry *entry = &facts->entries[i];
        bytes_put_number(out, entry->owner);
        bytes_put_number(out, entry->group);
        bytes_put_number(out, entry->mode);
        bytes_put_number(out, entry->acl);
    }
}

static void put_forms(struct bytes_writer *out, const struct forms *forms)
{
    bytes_put_number(out, (uint64_t)forms->form);
    cJSON *rules = forms_rules(forms);
    char *text = rules ? cJSON_PrintUnformatted(rules) : NULL;
    if (forms->n_rules > 0 && !text)
        out->failed = true;
    bytes_put_text(out, text);
    cJSON_free(text);
    cJSON_Delete(rules);
}

static void put_layout(struct bytes_writer *out, const struct model *model)
{
    (void)json_memory_failed();
    cJSON *object = cJSON_CreateObject();
    layout_describe(model->layout, object, false);
    char *text = object ? cJSON_PrintUnformatted(object) : NULL;
    if (!text || json_memory_failed())
        out->failed = true;
    bytes_put_text(out, text);
    cJSON_free(text);
    cJSON_Delete(object);
    bytes_put_number(out, model->plan->heads.heads);
    bytes_put_number(out, model->plan->heads.kv_heads);
}

/* Sets which file each part is the header of. The tensors tell it, but for parts that have none: these get the files
 * that are left. */
static void find_shards(const struct model *model, size_t n_headers, uint32_t shards[SOURCE_FILES_MAX])
{
    assert(model->header); /* only what is resident is described */
    bool used[SOURCE_FILES_MAX] = {false};
    size_t i = 0, tensor = 0, of_part = model->header->n_tensors; /* the first part has the tensors of all */
    for (const struct model_header *part = model->header->next; part; part = part->next)
        of_part -= part->n_tensors;
    for (const struct model_header *part = model->header; part; part = part->next, i++) {
        of_part = i == 0 ? of_part : part->n_tensors;
        shards[i] = UINT32_MAX;
        if (of_part == 0)
            continue;
        shards[i] = model->header->tensors[tensor].shard;
        used[shards[i]] = true;
        tensor += of_part;
    }
    uint32_t next = 0;
    for (i = 0; i < n_headers; i++) {
        while (shards[i] == UINT32_MAX && used[next])
            next++;
        if (shards[i] == UINT32_MAX)
            shards[i] = next++;
    }
}

/* Of a published model: its only header is the manifest that clients get. */
static void put_manifest(struct bytes_writer *out, const struct model *model)
{
    struct stat status;
    if (fstat(model->published.header_fd, &status) < 0)
        out->failed = true;
    bytes_put_number(out, 1);
    bytes_put_number(out, out->failed ? 0 : (uint64_t)status.st_size);
    bytes_put_number(out, 0);
    bytes_put_number(out, 0);
}

static void put_headers(struct bytes_writer *out, const struct model *model)
{
    if (model_is_published(model)) {
        put_manifest(out, model);
        return;
    }
    uint32_t shards[SOURCE_FILES_MAX];
    size_t n_headers = 0;
    for (const struct model_header *part = model->header; part; part = part->next)
        n_headers++;
    if (n_headers > model->source->n_files) {
        out->failed = true;
        return;
    }
    find_shards(model, n_headers, shards);
    bytes_put_number(out, n_headers);
    n_headers = 0;
    for (const struct model_header *part = model->header; part; part = part->next) {
        bytes_put_number(out, part->header_bytes);
        bytes_put_number(out, part->file_size);
        bytes_put_number(out, shards[n_headers++]);
    }
}

static void put_tensors(struct bytes_writer *out, const struct model *model)
{
    if (model_is_published(model)) {
        bytes_put_number(out, 0);
        return;
    }
    bytes_put_number(out, model->header->n_tensors);
    for (size_t i = 0; i < model->header->n_tensors; i++) {
        const struct header_tensor *tensor = &model->header->tensors[i];
        const struct tensor_place *place = &model->plan->places[i];
        bytes_put_number(out, tensor->offset);
        bytes_put_number(out, tensor->bytes);
        bytes_put_number(out, tensor->shard);
        bytes_put_number(out, place->offset);
        bytes_put_number(out, place->bytes);
        bytes_put_number(out, place->padding);
        bytes_put_number(out, (uint64_t)place->form);
        bytes_put_number(out, (uint64_t)place->convert);
    }
}

static void put_model(struct bytes_writer *out, const struct model *model, const uint32_t *numbers)
{
    bytes_put(out, model->token, sizeof(model->token));
    bytes_put_number(out, model->id);
    bytes_put_number(out, model->uid);
    bytes_put_number(out, (uint64_t)model->access);
    bytes_put_number(out, model->pinned);
    bytes_put_number(out, model->changed);
    bytes_put_number(out, model->deleted);
    bytes_put_number(out, (uint64_t)model->ttl);
    bytes_put_number(out, model->overflows);
    bytes_put_text(out, model->origin);
    bytes_put_text(out, model->source->link);
    put_users(out, model);
    put_facts(out, model->facts);
    put_forms(out, model->forms);
    put_layout(out, model);
    bytes_put_text(out, model->device->id);
    bytes_put_text(out, model->device->kind);
    bytes_put_text(out, model->device->uuid);
    bytes_put_text(out, model->device->pci);
    bytes_put_text(out, model->device->name);
    bytes_put_number(out, model->device->total);
    bytes_put_number(out, model->device->budget);
    bytes_put_number(out, model->device->link);
    bytes_put_number(out, model->device->granule);
    bytes_put_number(out, model->plan->arena_bytes);
    bytes_put_number(out, model->source->n_files);
    for (size_t i = 0; i < model->source->n_files; i++) {
        bytes_put_number(out, numbers[i]);
        bytes_put_text(out, model->source->files[i].path);
        bytes_put_number(out, model->source->files[i].seen);
        bytes_put_number(out, model->source->files[i].mount > 0);
        put_identity(out, &model->source->files[i].identity);
    }
    put_headers(out, model);
    put_tensors(out, model);
}

int description_write(const struct model *model, const uint32_t *numbers)
{
    struct bytes_writer body = {0}, out = {0};
    put_model(&body, model, numbers);
    bytes_put(&out, DESCRIPTION_MAGIC, 8);
    bytes_put_number(&out, DESCRIPTION_VERSION);
    bytes_put_number(&out, body.size);
    bytes_put_number(&out, body.failed ? 0 : XXH3_64bits(body.bytes, body.size));
    bytes_put(&out, body.bytes, body.failed ? 0 : body.size);
    int r = body.failed || out.failed ? -ENOMEM : out.size > DESCRIPTION_MAX ? -E2BIG : 0;
    int fd = r < 0 ? r : memory_file_new("rocmforge-description");
    if (fd >= 0) {
        r = write_all(fd, out.bytes, out.size);
        if (r == 0)
            r = memory_file_seal(fd);
        if (r < 0) {
            close(fd);
            fd = r;
        }
    }
    free(body.bytes);
    free(out.bytes);
    return fd;
}
