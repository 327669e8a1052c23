/* A manifest as a header for clients, and back; texts that clients pass; and the memory that all of it takes. */
#include "daemon/model/manifest.h"
#include "proto/json_read.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LENGTH_BYTES 8u /* of the JSON, before it */

/* --- writing --- */

/* Writes a text as a JSON string. It is valid UTF-8. */
static void put_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (const char *at = text; *at; at++) {
        const unsigned char byte = (unsigned char)*at;
        if (byte == '"' || byte == '\\')
            fprintf(out, "\\%c", byte);
        else if (byte < 0x20)
            fprintf(out, "\\u%04x", byte);
        else
            fputc(byte, out);
    }
    fputc('"', out);
}

static void put_entry(FILE *out, const char *key, const char *value, const char **comma)
{
    if (!value)
        return;
    fprintf(out, "%s\"%s\":", *comma, key);
    put_string(out, value);
    *comma = ",";
}

static void put_numbers(FILE *out, const char *key, const uint64_t *numbers, uint32_t n)
{
    fprintf(out, ",\"%s\":[", key);
    for (uint32_t i = 0; i < n; i++)
        fprintf(out, "%s%" PRIu64, i ? "," : "", numbers[i]);
    fputc(']', out);
}

static void put_tensor(FILE *out, const struct plan *plan, size_t i)
{
    const struct header_tensor *tensor = &plan->model->tensors[i];
    const uint64_t *strides = manifest_strides(plan->manifest, i);
    uint64_t shape[HEADER_DIMS_MAX];
    for (uint32_t k = 0; k < tensor->n_dims; k++)
        shape[k] = tensor->ne[tensor->n_dims - 1 - k];
    fprintf(out, "%s{\"name\":", i ? "," : "");
    put_string(out, tensor->name);
    fprintf(out, ",\"type\":\"%s\"", tensor->type->name);
    put_numbers(out, "shape", shape, tensor->n_dims);
    if (strides)
        put_numbers(out, "strides", strides, tensor->n_dims);
    fprintf(out, ",\"offset\":%" PRIu64 "}", plan->places[i].offset);
}

int manifest_header(const struct plan *plan, char **ret, size_t *ret_size)
{
    char *text = NULL;
    size_t size = 0;
    const char *comma = "";
    const char room[LENGTH_BYTES] = {0};
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return -ENOMEM;
    fwrite(room, 1, sizeof(room), out);
    fputs("{\"__metadata__\":{", out);
    put_entry(out, "key", plan->manifest->key, &comma);
    put_entry(out, "metadata", plan->manifest->metadata, &comma);
    fputs("},\"tensors\":[", out);
    for (size_t i = 0; i < plan->model->n_tensors; i++)
        put_tensor(out, plan, i);
    fputs("]}", out);
    const int failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return -ENOMEM;
    }
    const uint64_t length = htole64(size - LENGTH_BYTES);
    memcpy(text, &length, sizeof(length));
    *ret = text;
    *ret_size = size;
    return 0;
}

/* --- reading --- */

/* Reads a string that has at most so many bytes. */
static int read_text(struct json_reader *json, size_t most, char **ret)
{
    struct json_span span;
    if (json_read_string(json, &span) < 0 || span.decoded > most)
        return -EBADMSG;
    free(*ret);
    *ret = malloc(span.decoded + 1);
    if (!*ret)
        return -ENOMEM;
    json_decode(json, &span, *ret);
    (*ret)[span.decoded] = '\0';
    return 0;
}

static int read_entries(struct json_reader *json, char **key, char **metadata)
{
    struct json_span name;
    bool first = true;
    int more, r = json_enter(json, '{') < 0 ? -EBADMSG : 0;
    while (r == 0 && (more = json_next_key(json, &first, &name)) != 0)
        r = more < 0                               ? -EBADMSG
            : json_equals(json, &name, "key")      ? read_text(json, MANIFEST_KEY_MAX, key)
            : json_equals(json, &name, "metadata") ? read_text(json, MANIFEST_METADATA_MAX, metadata)
                                                   : -EBADMSG;
    return r;
}

/* Finds where the list of tensors stands. */
static int read_top(struct json_reader *json, char **key, char **metadata, size_t *ret_begin, size_t *ret_end)
{
    struct json_span name;
    bool first = true;
    int more, r = json_enter(json, '{') < 0 ? -EBADMSG : 0;
    *ret_begin = *ret_end = 0;
    while (r == 0 && (more = json_next_key(json, &first, &name)) != 0) {
        if (more > 0 && json_equals(json, &name, "__metadata__"))
            r = read_entries(json, key, metadata);
        else if (more > 0 && json_equals(json, &name, "tensors") && *ret_end == 0) {
            *ret_begin = json->at;
            r = json_skip(json) < 0 ? -EBADMSG : 0;
            *ret_end = json->at;
        } else
            r = -EBADMSG;
    }
    return r == 0 && (json_end(json) < 0 || *ret_end == 0) ? -EBADMSG : r;
}

int manifest_read_header(const char *bytes, size_t size, uint64_t arena_bytes, struct manifest_parsed *ret)
{
    uint64_t length;
    if (size <= LENGTH_BYTES || arena_bytes == 0)
        return -EBADMSG;
    memcpy(&length, bytes, sizeof(length));
    if (le64toh(length) != size - LENGTH_BYTES)
        return -EBADMSG;
    struct json_reader json = {.bytes = bytes + LENGTH_BYTES, .size = size - LENGTH_BYTES};
    char *key = NULL, *metadata = NULL;
    size_t begin, end;
    struct manifest_parsed parts = {0};
    struct manifest_fault unused;
    int r = read_top(&json, &key, &metadata, &begin, &end);
    if (r == 0)
        r = manifest_parse(json.bytes + begin, end - begin, arena_bytes, PLAN_ALIGNMENT, &parts, &unused);
    if (r == 0 && parts.plan->arena_bytes != arena_bytes) {
        manifest_parsed_free(&parts);
        r = -EBADMSG;
    }
    if (r < 0) {
        free(key);
        free(metadata);
        return r;
    }
    assert(parts.manifest);
    parts.manifest->key = key;
    parts.manifest->metadata = metadata;
    *ret = parts;
    return 0;
}

static int text_check(int fd, size_t most, size_t *ret_size)
{
    const int seals = F_SEAL_WRITE | F_SEAL_SHRINK;
    const int has = fcntl(fd, F_GET_SEALS);
    struct stat status;
    if (has < 0 || (has & seals) != seals)
        return -EPERM;
    if (fstat(fd, &status) < 0)
        return -errno;
    if (status.st_size < 0 || (uint64_t)status.st_size > most)
        return -E2BIG;
    *ret_size = (size_t)status.st_size;
    return 0;
}

int manifest_text_read(int fd, size_t most, char **ret, size_t *ret_size)
{
    size_t size = 0;
    int r = text_check(fd, most, &size);
    if (r < 0)
        return r;
    char *text = malloc(size + 1);
    if (!text)
        return -ENOMEM;
    for (size_t at = 0; at < size;) {
        const ssize_t n = pread(fd, text + at, size - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            r = n < 0 ? -errno : -EIO;
            free(text);
            return r;
        }
        at += (size_t)n;
    }
    text[size] = '\0';
    *ret = text;
    *ret_size = size;
    return 0;
}

/* --- the rest --- */

int manifest_entries(const struct manifest *manifest, struct header_kv ret[2], size_t *ret_n, char **ret_text)
{
    const char *keys[] = {"key", "metadata"}, *values[] = {manifest->key, manifest->metadata};
    size_t size = 0, n = 0;
    for (size_t i = 0; i < 2; i++)
        size += values[i] ? GGUF_STRING_LENGTH + strlen(values[i]) : 0;
    char *text = malloc(size ? size : 1), *at = text;
    if (!text)
        return -ENOMEM;
    for (size_t i = 0; i < 2; i++) {
        if (!values[i])
            continue;
        const size_t bytes = strlen(values[i]);
        const uint64_t length = htole64(bytes);
        memcpy(at, &length, sizeof(length));
        memcpy(at + GGUF_STRING_LENGTH, values[i], bytes);
        ret[n++] = (struct header_kv){
            .key = {keys[i], strlen(keys[i])},
            .type = GGUF_STRING,
            .element_type = GGUF_STRING,
            .count = 1,
            .data = (const uint8_t *)at,
            .data_size = GGUF_STRING_LENGTH + bytes,
        };
        at += GGUF_STRING_LENGTH + bytes;
    }
    *ret_n = n;
    *ret_text = text;
    return 0;
}

uint64_t manifest_memory(const struct manifest *manifest)
{
    if (!manifest)
        return 0;
    return sizeof(*manifest) + (manifest->key ? strlen(manifest->key) : 0) +
           (manifest->metadata ? strlen(manifest->metadata) : 0) +
           manifest->n_tensors *
               (sizeof(*manifest->flags) + (manifest->strides ? sizeof(uint64_t[HEADER_DIMS_MAX]) : 0));
}
