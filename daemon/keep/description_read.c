#include "daemon/keep/bytes.h"
#include "daemon/keep/description.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* The fewest bytes of a file: its magic, its version, the size of the rest, and the checksum. */
#define PROLOGUE_BYTES 32

/* The most bytes of a text that has no bound of its own. */
#define TEXT_MAX ((size_t)1 << 16)

/* The most bytes of forms' rules as JSON: each character of a pattern may be escaped. */
#define RULES_MAX (FORMS_RULES_MAX * (FORMS_MATCH_MAX * 6 + 64))

/* The most bytes of a layout as JSON: that of a request, each character of a name escaped. */
#define LAYOUT_TEXT_MAX ((size_t)2 << 20)

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
    ret->n_files = bytes_take_count(in, SOURCE_FILES_MAX, 72);
    ret->files = array_new(in, ret->n_files, sizeof(*ret->files));
    for (size_t i = 0; i < ret->n_files && !in->failed; i++) {
        ret->files[i].number = (uint32_t)bytes_take_number(in, UINT32_MAX);
        (void)bytes_take_text(in, TEXT_MAX, &ret->files[i].path);
        ret->files[i].seen = bytes_take_number(in, 1);
        ret->files[i].named = bytes_take_number(in, 1);
        take_identity(in, &ret->files[i].identity);
    }
}

static void take_parsed(struct bytes_reader *in, struct description *ret)
{
    ret->n_headers = bytes_take_count(in, ret->n_files ? ret->n_files : 1, 24);
    ret->headers = array_new(in, ret->n_headers, sizeof(*ret->headers));
    if (ret->n_headers == 0)
        in->failed = true;
    for (size_t i = 0; i < ret->n_headers && !in->failed; i++) {
        ret->headers[i].bytes = bytes_take_number(in, INT64_MAX);
        ret->headers[i].file_size = bytes_take_number(in, INT64_MAX);
        ret->headers[i].shard = (uint32_t)bytes_take_number(in, ret->n_files ? ret->n_files - 1 : 0);
    }
}

static void take_tensors(struct bytes_reader *in, struct description *ret)
{
    ret->n_tensors = bytes_take_count(in, ret->n_files ? HEADER_TENSORS_MAX : 0, 64);
    ret->tensors = array_new(in, ret->n_tensors, sizeof(*ret->tensors));
    for (size_t i = 0; i < ret->n_tensors && !in->failed; i++) {
        struct description_tensor *tensor = &ret->tensors[i];
        tensor->file_offset = bytes_take_number(in, INT64_MAX);
        tensor->file_bytes = bytes_take_number(in, INT64_MAX);
        tensor->shard = (uint32_t)bytes_take_number(in, ret->n_files - 1);
        tensor->place.offset = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->place.bytes = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->place.padding = bytes_take_number(in, PLAN_ARENA_MAX);
        tensor->place.form = (enum form)bytes_take_number(in, FORM_COUNT - 1);
        tensor->place.convert = (enum form)bytes_take_number(in, FORM_COUNT - 1);
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
    ret->deleted = bytes_take_number(in, 1);
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
        take_parsed(in, ret);
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
    if (status.st_size < PROLOGUE_BYTES || status.st_size > (off_t)DESCRIPTION_MAX)
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
    if (memcmp(magic, DESCRIPTION_MAGIC, sizeof(magic)) != 0) {
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
    free(description->headers);
    free(description->tensors);
    *description = (struct description){0};
}
