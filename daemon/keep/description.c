#include "daemon/keep/description.h"

#include "daemon/base/json_memory.h"
#include "daemon/base/memory_file.h"
#include "daemon/keep/bytes.h"
#include "proto/write_all.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC "rfkept\r\n"

/* Before the rest, all in the byte order of bytes.h. */
struct prologue {
    char magic[8];
    uint64_t version;
    uint64_t size;     /* of the rest */
    uint64_t checksum; /* XXH3_64bits() of the rest */
};

/* The most bytes of a text that has no bound of its own. */
#define TEXT_MAX ((size_t)1 << 16)

/* The most bytes of forms' rules as JSON: each character of a pattern may be escaped. */
#define RULES_MAX (FORMS_RULES_MAX * (FORMS_MATCH_MAX * 6 + 64))

/* The most bytes of a layout as JSON: that of a request, each character of a name escaped. */
#define LAYOUT_TEXT_MAX ((size_t)2 << 20)

/* --- writing --- */

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
    layout_describe(model->layout, object);
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
static void find_shards(const struct model *model, size_t n_parts, uint32_t shards[SOURCE_FILES_MAX])
{
    bool used[SOURCE_FILES_MAX] = {false};
    size_t i = 0, tensor = 0, of_part = model->header->n_tensors; /* the first part has the tensors of all */
    for (const struct gguf *part = model->header->next; part; part = part->next)
        of_part -= part->n_tensors;
    for (const struct gguf *part = model->header; part; part = part->next, i++) {
        of_part = i == 0 ? of_part : part->n_tensors;
        shards[i] = UINT32_MAX;
        if (of_part == 0)
            continue;
        shards[i] = model->header->tensors[tensor].shard;
        used[shards[i]] = true;
        tensor += of_part;
    }
    uint32_t next = 0;
    for (i = 0; i < n_parts; i++) {
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

static void put_parts(struct bytes_writer *out, const struct model *model)
{
    if (model_is_published(model)) {
        put_manifest(out, model);
        return;
    }
    uint32_t shards[SOURCE_FILES_MAX];
    size_t n_parts = 0;
    for (const struct gguf *part = model->header; part; part = part->next)
        n_parts++;
    if (n_parts > model->source->n_files) {
        out->failed = true;
        return;
    }
    find_shards(model, n_parts, shards);
    bytes_put_number(out, n_parts);
    n_parts = 0;
    for (const struct gguf *part = model->header; part; part = part->next) {
        bytes_put_number(out, part->header_bytes);
        bytes_put_number(out, part->file_size);
        bytes_put_number(out, shards[n_parts++]);
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
        const struct gguf_tensor *tensor = &model->header->tensors[i];
        const struct placement *placement = &model->plan->placements[i];
        bytes_put_number(out, tensor->offset);
        bytes_put_number(out, tensor->bytes);
        bytes_put_number(out, tensor->shard);
        bytes_put_number(out, placement->offset);
        bytes_put_number(out, placement->bytes);
        bytes_put_number(out, placement->padding);
        bytes_put_number(out, (uint64_t)placement->form);
        bytes_put_number(out, (uint64_t)placement->convert);
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
        put_identity(out, &model->source->files[i].identity);
    }
    put_parts(out, model);
    put_tensors(out, model);
}

int description_write(const struct model *model, const uint32_t *numbers)
{
    struct bytes_writer body = {0}, out = {0};
    put_model(&body, model, numbers);
    bytes_put(&out, MAGIC, 8);
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

/* --- reading --- */

static void take_identity(struct bytes_reader *in, struct identity *ret)
{
    ret->dev = bytes_take_number(in, UINT64_MAX);
    ret->ino = bytes_take_number(in, UINT64_MAX);
    ret->size = bytes_take_number(in, INT64_MAX);
    ret->mtime_ns = (int64_t)bytes_take_number(in, UINT64_MAX);
    ret->ctime_ns = (int64_t)bytes_take_number(in, UINT64_MAX);
}

/* An array of n elements, at least one, so that NULL means that there is no memory. */
static void *array_new(struct bytes_reader *in, size_t n, size_t each)
{
    void *array = calloc(n ? n : 1, each);
    if (!array)
        in->failed = true;
    return array;
}

static void take_users(struct bytes_reader *in, struct description *ret)
{
    ret->n_names = bytes_take_count(in, MODEL_NAMES_MAX, 24);
    ret->names = array_new(in, ret->n_names, sizeof(*ret->names));
    for (size_t i = 0; i < ret->n_names && !in->failed; i++) {
        struct model_name *name = &ret->names[i];
        char *text = NULL;
        name->since = bytes_take_number(in, UINT64_MAX - 1);
        name->uid = (uid_t)bytes_take_number(in, UINT32_MAX);
        if (!bytes_take_text(in, MODEL_NAME_MAX, &text))
            return;
        if (!text || !text[0] || strchr(text, '#'))
            in->failed = true;
        else
            strcpy(name->text, text);
        free(text);
    }
    ret->n_guests = bytes_take_count(in, MODEL_GUESTS_MAX, 8);
    ret->guests = array_new(in, ret->n_guests, sizeof(*ret->guests));
    for (size_t i = 0; i < ret->n_guests && !in->failed; i++)
        ret->guests[i] = (uid_t)bytes_take_number(in, UINT32_MAX);
}

static void take_facts(struct bytes_reader *in, struct description *ret)
{
    if (!bytes_take_number(in, 1))
        return;
    const bool placed = bytes_take_number(in, 1);
    const size_t n_files = bytes_take_count(in, SOURCE_FILES_MAX, 32);
    const size_t n_folders = bytes_take_count(in, TEXT_MAX, 32);
    if (in->failed || n_files + n_folders > in->left / 32) {
        in->failed = true;
        return;
    }
    struct access_entry *entries;
    if (access_facts_new(n_files, n_folders, &ret->facts, &entries) < 0) {
        in->failed = true;
        return;
    }
    ret->facts->placed = placed;
    for (size_t i = 0; i < n_files + n_folders; i++) {
        entries[i].owner = (uid_t)bytes_take_number(in, UINT32_MAX);
        entries[i].group = (gid_t)bytes_take_number(in, UINT32_MAX);
        entries[i].mode = (mode_t)bytes_take_number(in, UINT32_MAX);
        entries[i].acl = bytes_take_number(in, 1);
    }
}

static void take_forms(struct bytes_reader *in, struct description *ret)
{
    const enum form form = (enum form)bytes_take_number(in, FORM_AUTO);
    char *text = NULL;
    if (!bytes_take_text(in, RULES_MAX, &text))
        return;
    cJSON *rules = text ? cJSON_Parse(text) : NULL;
    if ((text && !cJSON_IsArray(rules)) || forms_new(form, rules, &ret->forms) < 0)
        in->failed = true;
    cJSON_Delete(rules);
    free(text);
}

static void take_layout(struct bytes_reader *in, struct description *ret)
{
    char *text = NULL;
    const char *unused;
    if (!bytes_take_text(in, LAYOUT_TEXT_MAX, &text))
        return;
    cJSON *object = text ? cJSON_Parse(text) : NULL;
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(object, "layout");
    if (!cJSON_IsObject(object) ||
        layout_new(cJSON_GetStringValue(name), cJSON_GetObjectItemCaseSensitive(object, "groups"),
                   cJSON_GetObjectItemCaseSensitive(object, "tp"), &ret->layout, &unused) < 0)
        in->failed = true;
    cJSON_Delete(object);
    free(text);
    ret->heads.heads = bytes_take_number(in, LAYOUT_HEADS_MAX);
    ret->heads.kv_heads = bytes_take_number(in, LAYOUT_HEADS_MAX);
}

static void take_files(struct bytes_reader *in, struct description *ret)
{
    ret->n_files = bytes_take_count(in, SOURCE_FILES_MAX, 56);
    ret->files = array_new(in, ret->n_files, sizeof(*ret->files));
    for (size_t i = 0; i < ret->n_files && !in->failed; i++) {
        ret->files[i].number = (uint32_t)bytes_take_number(in, UINT32_MAX);
        (void)bytes_take_text(in, TEXT_MAX, &ret->files[i].path);
        take_identity(in, &ret->files[i].identity);
    }
}

static void take_parts(struct bytes_reader *in, struct description *ret)
{
    ret->n_parts = bytes_take_count(in, ret->n_files ? ret->n_files : 1, 24);
    ret->parts = array_new(in, ret->n_parts, sizeof(*ret->parts));
    if (ret->n_parts == 0)
        in->failed = true;
    for (size_t i = 0; i < ret->n_parts && !in->failed; i++) {
        ret->parts[i].bytes = bytes_take_number(in, INT64_MAX);
        ret->parts[i].file_size = bytes_take_number(in, INT64_MAX);
        ret->parts[i].shard = (uint32_t)bytes_take_number(in, ret->n_files ? ret->n_files - 1 : 0);
    }
}

static void take_tensors(struct bytes_reader *in, struct description *ret)
{
    ret->n_tensors = bytes_take_count(in, ret->n_files ? GGUF_TENSORS_MAX : 0, 64);
    ret->tensors = array_new(in, ret->n_tensors, sizeof(*ret->tensors));
    for (size_t i = 0; i < ret->n_tensors && !in->failed; i++) {
        struct description_tensor *tensor = &ret->tensors[i];
        tensor->file_offset = bytes_take_number(in, INT64_MAX);
        tensor->file_bytes = bytes_take_number(in, INT64_MAX);
        tensor->shard = (uint32_t)bytes_take_number(in, ret->n_files - 1);
        tensor->placement.offset = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->placement.bytes = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->placement.padding = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->placement.form = (enum form)bytes_take_number(in, FORM_COUNT - 1);
        tensor->placement.convert = (enum form)bytes_take_number(in, FORM_COUNT - 1);
    }
}

static void take_model(struct bytes_reader *in, struct description *ret)
{
    bytes_take(in, ret->token, sizeof(ret->token));
    ret->id = bytes_take_number(in, INT64_MAX);
    ret->uid = (uid_t)bytes_take_number(in, UINT32_MAX);
    ret->access = (enum access)bytes_take_number(in, ACCESS_PUBLIC);
    ret->pinned = bytes_take_number(in, 1);
    ret->changed = bytes_take_number(in, 1);
    ret->ttl = (int64_t)bytes_take_number(in, UINT64_MAX);
    ret->overflows = bytes_take_number(in, UINT64_MAX);
    (void)bytes_take_text(in, TEXT_MAX, &ret->origin);
    (void)bytes_take_text(in, TEXT_MAX, &ret->link);
    take_users(in, ret);
    take_facts(in, ret);
    take_forms(in, ret);
    take_layout(in, ret);
    (void)bytes_take_text(in, TEXT_MAX, &ret->device_id);
    (void)bytes_take_text(in, TEXT_MAX, &ret->device_kind);
    (void)bytes_take_text(in, TEXT_MAX, &ret->device_uuid);
    (void)bytes_take_text(in, TEXT_MAX, &ret->device_pci);
    (void)bytes_take_text(in, TEXT_MAX, &ret->device_name);
    ret->device_total = bytes_take_number(in, INT64_MAX);
    ret->device_budget = bytes_take_number(in, INT64_MAX);
    ret->device_link = bytes_take_number(in, INT64_MAX);
    ret->granule = bytes_take_number(in, PLAN_ARENA_MAX);
    ret->arena_bytes = bytes_take_number(in, PLAN_ARENA_MAX - 1);
    take_files(in, ret);
    if (!in->failed)
        take_parts(in, ret);
    if (!in->failed)
        take_tensors(in, ret);
    if (in->left > 0 || ret->id == 0 || ret->n_names == 0 || ret->ttl < -1)
        in->failed = true;
    if (!ret->device_id || !ret->device_kind || !ret->device_uuid || !ret->device_pci || !ret->device_name)
        in->failed = true;
}

bool description_sealed(int fd)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const int has = fcntl(fd, F_GET_SEALS);
    return has >= 0 && (has & seals) == seals;
}

/* Reads the whole file. -EBADMSG: it is too short or too long. */
static int read_all(int fd, uint8_t **ret, size_t *ret_size)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (status.st_size < (off_t)sizeof(struct prologue) || status.st_size > (off_t)DESCRIPTION_MAX)
        return -EBADMSG;
    const size_t size = (size_t)status.st_size;
    uint8_t *bytes = malloc(size);
    if (!bytes)
        return -ENOMEM;
    for (size_t at = 0; at < size;) {
        const ssize_t n = pread(fd, bytes + at, size - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            const int r = n < 0 ? -errno : -EBADMSG;
            free(bytes);
            return r;
        }
        at += (size_t)n;
    }
    *ret = bytes;
    *ret_size = size;
    return 0;
}

/* 0, and the reader is at the model; or an error and the sentence. */
static int check(struct bytes_reader *in, const char **ret_why)
{
    char magic[8];
    bytes_take(in, magic, sizeof(magic));
    const uint64_t version = bytes_take_number(in, UINT64_MAX);
    const uint64_t size = bytes_take_number(in, UINT64_MAX), checksum = bytes_take_number(in, UINT64_MAX);
    if (memcmp(magic, MAGIC, sizeof(magic)) != 0) {
        *ret_why = "it is no description";
        return -EBADMSG;
    }
    if (version != DESCRIPTION_VERSION) {
        *ret_why = "its description has another version";
        return -EPROTONOSUPPORT;
    }
    if (size != in->left) {
        *ret_why = "its description has another length";
        return -EBADMSG;
    }
    if (checksum != XXH3_64bits(in->bytes, in->left)) {
        *ret_why = "the checksum of its description is wrong";
        return -EBADMSG;
    }
    return 0;
}

int description_read(int fd, struct description *ret, const char **ret_why)
{
    if (!description_sealed(fd)) {
        *ret_why = "its description is not sealed";
        return -EPERM;
    }
    uint8_t *bytes = NULL;
    size_t size = 0;
    int r = read_all(fd, &bytes, &size);
    if (r < 0) {
        *ret_why = r == -ENOMEM ? "out of memory" : "its description cannot be read";
        return r;
    }
    struct bytes_reader in = {.bytes = bytes, .left = size};
    struct description description = {0};
    r = check(&in, ret_why);
    if (r == 0)
        take_model(&in, &description);
    free(bytes);
    if (r == 0 && in.failed) {
        *ret_why = "its description has a value that cannot be";
        r = -EBADMSG;
    }
    if (r < 0) {
        description_clear(&description);
        return r;
    }
    *ret = description;
    return 0;
}

void description_clear(struct description *description)
{
    free(description->origin);
    free(description->link);
    free(description->names);
    free(description->guests);
    access_facts_unref(description->facts);
    forms_unref(description->forms);
    layout_unref(description->layout);
    free(description->device_id);
    free(description->device_kind);
    free(description->device_uuid);
    free(description->device_pci);
    free(description->device_name);
    for (size_t i = 0; i < description->n_files && description->files; i++)
        free(description->files[i].path);
    free(description->files);
    free(description->parts);
    free(description->tensors);
    *description = (struct description){0};
}
