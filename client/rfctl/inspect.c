/* inspect: reads the header of a model's file, without a daemon. The header is made into JSON of the same form as the
 * reply to Show, and that JSON is printed. */
#include "client/rfctl/format.h"
#include "client/rfctl/headers.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/table.h"
#include "client/rfctl/terminal.h"
#include "daemon/header/model_header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static cJSON *metadata_of(const struct model_header *file)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_kv; i++) {
        const struct header_kv *kv = &file->kv[i];
        cJSON *entry = cJSON_CreateObject();
        char *key = strndup(kv->key.bytes, kv->key.size);
        char *clean = key ? text_escape(key, strlen(key)) : NULL; /* JSON takes UTF-8 only */
        cJSON_AddStringToObject(entry, "key", clean ? clean : "");
        free(clean);
        free(key);
        (void)header_kv_describe(kv, entry);
        cJSON_AddItemToArray(array, entry);
    }
    return array;
}

static cJSON *tensors_of(const struct model_header *file)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct header_tensor *tensor = &file->tensors[i];
        cJSON *object = cJSON_CreateObject();
        cJSON_AddStringToObject(object, "name", tensor->name);
        cJSON_AddStringToObject(object, "type", tensor->type->name);
        cJSON *shape = cJSON_AddArrayToObject(object, "shape");
        for (uint32_t dim = tensor->n_dims; dim-- > 0;)
            cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)tensor->ne[dim]));
        cJSON_AddNumberToObject(object, "offset", (double)tensor->offset);
        cJSON_AddNumberToObject(object, "size", (double)tensor->bytes);
        if (file->next)
            cJSON_AddNumberToObject(object, "file", tensor->shard + 1);
        cJSON_AddItemToArray(array, object);
    }
    return array;
}

struct sums {
    double tensors, elements, bytes; /* tensors may share bytes, so a sum may be too large for an integer */
};

/* Any type's id is less: those that GGUF files can name, and then the TYPE_KEPT. */
#define TYPES_MAX (TYPE_KEPT_FIRST + 256)

static cJSON *types_of(const struct model_header *file, struct sums *all)
{
    struct sums *sums = calloc(TYPES_MAX, sizeof(*sums));
    const char **names = calloc(TYPES_MAX, sizeof(*names));
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_tensors && sums && names; i++) {
        const struct header_tensor *tensor = &file->tensors[i];
        struct sums *both[] = {&sums[tensor->type->id], all};
        names[tensor->type->id] = tensor->type->name;
        for (size_t k = 0; k < 2; k++) {
            both[k]->tensors += 1;
            both[k]->elements += (double)tensor->elements;
            both[k]->bytes += (double)tensor->bytes;
        }
    }
    for (uint32_t id = 0; id < TYPES_MAX && sums && names; id++) {
        if (!names[id])
            continue;
        cJSON *object = cJSON_CreateObject();
        cJSON_AddStringToObject(object, "type", names[id]);
        cJSON_AddNumberToObject(object, "tensors", sums[id].tensors);
        cJSON_AddNumberToObject(object, "parameters", sums[id].elements);
        cJSON_AddNumberToObject(object, "bytes", sums[id].bytes);
        cJSON_AddItemToArray(array, object);
    }
    free(sums);
    free(names);
    return array;
}

/* Adds the paths, if there are any. */
static void add_paths(cJSON *object, const char *key, const struct shard_paths *paths)
{
    cJSON *array = paths->n > 0 ? cJSON_AddArrayToObject(object, key) : NULL;
    for (size_t i = 0; i < paths->n; i++) {
        char *path = text_escape(paths->paths[i], strlen(paths->paths[i]));
        cJSON_AddItemToArray(array, cJSON_CreateString(path));
        free(path);
    }
}

static cJSON *describe(const struct headers *inspected)
{
    const struct model_header *file = inspected->file;
    cJSON *object = cJSON_CreateObject();
    struct header_string architecture;
    struct sums all = {0};
    cJSON *types = types_of(file, &all);
    cJSON_AddStringToObject(object, "format", file->format);
    if (file->version > 0)
        cJSON_AddNumberToObject(object, "version", file->version);
    if (header_kv_string(model_header_find(file, "general.architecture"), &architecture) == 0) {
        char *text = text_escape(architecture.bytes, architecture.size);
        cJSON_AddStringToObject(object, "architecture", text);
        free(text);
    } else
        cJSON_AddNullToObject(object, "architecture");
    cJSON_AddNumberToObject(object, "parameters", all.elements);
    cJSON_AddNumberToObject(object, "bytes", all.bytes);
    cJSON_AddNumberToObject(object, "size", (double)inspected->size);
    if (inspected->place.split) {
        cJSON_AddNumberToObject(object, "file", (double)inspected->place.number + 1);
        if (inspected->place.count > 0)
            cJSON_AddNumberToObject(object, "files", (double)inspected->place.count);
        cJSON_AddBoolToObject(object, "whole", inspected->whole);
        add_paths(object, "same", &inspected->same);
        add_paths(object, "missing", &inspected->absent);
    }
    cJSON_AddNumberToObject(object, "alignment", (double)file->alignment);
    cJSON_AddNumberToObject(object, "bits_per_weight", all.elements > 0 ? all.bytes * 8 / all.elements : 0);
    cJSON_AddItemToObject(object, "types", types);
    cJSON_AddItemToObject(object, "metadata", metadata_of(file));
    cJSON_AddItemToObject(object, "tensors", tensors_of(file));
    return object;
}

static void print_types(const cJSON *types)
{
    static const struct table_column columns[] = {
        {"TYPE", 0}, {"TENSORS", TABLE_RIGHT}, {"PARAMETERS", TABLE_RIGHT}, {"SIZE", TABLE_RIGHT}, {0},
    };
    if (cJSON_GetArraySize(types) == 0)
        return;
    struct table *table = table_new(columns);
    const cJSON *type;
    cJSON_ArrayForEach (type, types) {
        char bytes[FORMAT_SIZE];
        table_add(table, "%s", reply_text(type, "type"));
        table_add(table, "%.0f", reply_number(type, "tensors", 0));
        table_add(table, "%.0f", reply_number(type, "parameters", 0));
        table_add(table, "%s", format_bytes(bytes, reply_number(type, "bytes", 0)));
    }
    out_line("%s", "");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

static void print_paths(const cJSON *paths)
{
    const cJSON *path;
    cJSON_ArrayForEach (path, paths) {
        out_line("  %s", path->valuestring);
    }
}

/* Of a file that is one of several. */
static void print_place(const cJSON *file)
{
    const double number = reply_number(file, "file", 0), files = reply_number(file, "files", 0);
    const bool whole = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(file, "whole"));
    const cJSON *same = reply_items(file, "same"), *missing = reply_items(file, "missing");
    if (number > 0 && files > 0)
        out_line("file %.0f of %.0f: %s", number, files,
                 whole                ? "all are here; the numbers are those of the whole model"
                 : files > SHARDS_MAX ? "too many; the numbers are those of this file"
                 : cJSON_GetArraySize(same) > 0
                     ? "several files may be the same other one; the numbers are those of this file"
                 : cJSON_GetArraySize(missing) > 0 ? "not all are here; the numbers are those of this file. Missing:"
                                                   : "not all are here; the numbers are those of this file");
    else if (number > 0)
        out_line("file %.0f of several; the numbers are those of this file", number);
    print_paths(same);
    print_paths(missing);
}

static void print(const char *path, const cJSON *file)
{
    char text[FORMAT_SIZE];
    double parameters = reply_number(file, "parameters", 0);
    const char *architecture = reply_text(file, "architecture");
    const double version = reply_number(file, "version", 0);
    format_bytes(text, reply_number(file, "size", 0));
    if (version > 0)
        out_line("%s: GGUF version %.0f, %s", path, version, text);
    else
        out_line("%s: %s, %s", path, reply_text(file, "format"), text);
    print_place(file);
    out_line("architecture:    %s", architecture[0] ? architecture : "not told");
    out_line(parameters < 1000 ? "parameters:      %s" : "parameters:      %s (%.0f)", format_count(text, parameters),
             parameters);
    out_line("tensors:         %d, %s", cJSON_GetArraySize(reply_items(file, "tensors")),
             format_bytes(text, reply_number(file, "bytes", 0)));
    if (parameters > 0)
        out_line("bits per weight: %.2f", reply_number(file, "bits_per_weight", 0));
    print_types(reply_items(file, "types"));
    show_metadata(reply_items(file, "metadata"));
    show_tensors(reply_items(file, "tensors"));
}

/* Prints the same error as the daemon would for this file. */
static void print_invalid(const struct rfctl *ctl, const struct header_fault *fault)
{
    cJSON *parameters = ctl_name("reason", fault->reason);
    cJSON_AddNumberToObject(parameters, "offset", (double)fault->offset);
    char *text = cJSON_PrintUnformatted(parameters);
    ctl_print_error(ctl, "io.rocmforge.InvalidModel", text);
    cJSON_free(text);
    cJSON_Delete(parameters);
}

/* Reads the headers of the files. Returns false after it said why it cannot. */
static bool read_files(const struct rfctl *ctl, struct headers *ret)
{
    struct header_fault fault = {0};
    char *path;
    int r = headers_read(ctl->arguments, ctl->n_arguments, ret, &fault, &path);
    if (r == 0)
        return true;
    if (r == -EBADMSG) {
        err_line("cannot inspect %s: %s, at byte %" PRIu64, path, fault.reason, fault.offset);
        print_invalid(ctl, &fault);
    } else
        ctl_refuse(ctl, "cannot inspect %s: %s", path,
                   r == -EINVAL    ? "it is no regular file"
                   : r == -ENODATA ? "it was cut short"
                                   : strerror(-r));
    free(path);
    return false;
}

int command_inspect(struct rfctl *ctl)
{
    struct headers inspected = {0};
    if (!read_files(ctl, &inspected))
        return STATUS_REFUSED;
    cJSON *description = describe(&inspected);
    if (ctl->options.json) {
        char *text = cJSON_PrintUnformatted(description);
        if (text)
            out_json(text);
        else
            err_line("not enough memory");
        cJSON_free(text);
    } else
        print(ctl->arguments[0], description);
    cJSON_Delete(description);
    headers_clear(&inspected);
    return STATUS_DONE;
}
