/* inspect: reads the header of a GGUF file, without a daemon. The header is made into JSON of the same form as the
 * reply to Show, and that JSON is printed. */
#include "client/rfctl/format.h"
#include "client/rfctl/memory.h"
#include "client/rfctl/output.h"
#include "client/rfctl/reply.h"
#include "client/rfctl/rfctl.h"
#include "client/rfctl/table.h"
#include "client/rfctl/terminal.h"
#include "daemon/gguf/gguf.h"
#include "daemon/gguf/split.h"
#include "proto/shards.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static cJSON *metadata_of(const struct gguf *file)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_kv; i++) {
        const struct gguf_kv *kv = &file->kv[i];
        cJSON *entry = cJSON_CreateObject();
        char *key = strndup(kv->key.bytes, kv->key.size);
        char *clean = key ? text_escape(key, strlen(key)) : NULL; /* JSON takes UTF-8 only */
        cJSON_AddStringToObject(entry, "key", clean ? clean : "");
        free(clean);
        free(key);
        cJSON_AddStringToObject(entry, "type", gguf_value_type_name(kv->element_type));
        if (kv->type == GGUF_ARRAY)
            cJSON_AddNumberToObject(entry, "count", (double)kv->count);
        else
            cJSON_AddNullToObject(entry, "count");
        char *value = NULL;
        bool cut = false;
        if (gguf_kv_json(kv, GGUF_TOLD_ELEMENTS, GGUF_TOLD_STRING, &value, &cut) == 0)
            cJSON_AddStringToObject(entry, "value", value);
        free(value);
        if (cut)
            cJSON_AddTrueToObject(entry, "cut");
        if (cut && kv->type == GGUF_STRING)
            cJSON_AddNumberToObject(entry, "size", (double)(kv->data_size - GGUF_STRING_LENGTH));
        cJSON_AddItemToArray(array, entry);
    }
    return array;
}

static cJSON *tensors_of(const struct gguf *file)
{
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_tensors; i++) {
        const struct gguf_tensor *tensor = &file->tensors[i];
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

static cJSON *types_of(const struct gguf *file, struct sums *all)
{
    struct sums *sums = calloc(GGUF_TYPE_MAX + 1, sizeof(*sums));
    const char **names = calloc(GGUF_TYPE_MAX + 1, sizeof(*names));
    cJSON *array = cJSON_CreateArray();
    for (size_t i = 0; i < file->n_tensors && sums && names; i++) {
        const struct gguf_tensor *tensor = &file->tensors[i];
        struct sums *both[] = {&sums[tensor->type->id], all};
        names[tensor->type->id] = tensor->type->name;
        for (size_t k = 0; k < 2; k++) {
            both[k]->tensors += 1;
            both[k]->elements += (double)tensor->elements;
            both[k]->bytes += (double)tensor->bytes;
        }
    }
    for (uint32_t id = 0; id <= GGUF_TYPE_MAX && sums && names; id++) {
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

/* What was read: a file, or all files of a split model. */
struct inspected {
    struct gguf *file;
    uint64_t size;
    struct shard_place place; /* of the file that was named first */
    bool whole;               /* all files of the model were there */
};

static cJSON *describe(const struct inspected *inspected)
{
    const struct gguf *file = inspected->file;
    cJSON *object = cJSON_CreateObject();
    struct gguf_string architecture;
    struct sums all = {0};
    cJSON *types = types_of(file, &all);
    cJSON_AddNumberToObject(object, "version", file->version);
    if (gguf_kv_string(gguf_find(file, "general.architecture"), &architecture) == 0) {
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

/* Of a file that is one of several. */
static void print_place(const cJSON *file)
{
    const double number = reply_number(file, "file", 0), files = reply_number(file, "files", 0);
    const bool whole = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(file, "whole"));
    if (number > 0 && files > 0)
        out_line("file %.0f of %.0f: %s", number, files,
                 whole ? "all are here, and this is of the whole model"
                       : "the others are not here, and this is of it alone");
    else if (number > 0)
        out_line("file %.0f of several: this is of it alone", number);
}

static void print(const char *path, const cJSON *file)
{
    char text[FORMAT_SIZE];
    double parameters = reply_number(file, "parameters", 0);
    const char *architecture = reply_text(file, "architecture");
    out_line("%s: GGUF version %.0f, %s", path, reply_number(file, "version", 0),
             format_bytes(text, reply_number(file, "size", 0)));
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
static void print_invalid(const struct rfctl *ctl, const struct gguf_fault *fault)
{
    cJSON *parameters = ctl_name("reason", fault->reason);
    cJSON_AddNumberToObject(parameters, "offset", (double)fault->offset);
    char *text = cJSON_PrintUnformatted(parameters);
    ctl_print_error(ctl, "io.rocmforge.InvalidModel", text);
    cJSON_free(text);
    cJSON_Delete(parameters);
}

/* A shard_open_fn. */
static int open_file(const char *path)
{
    struct stat status;
    /* O_NONBLOCK: opening a named pipe would wait until another process writes to it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        return fd;
    close(fd);
    return -EINVAL;
}

/* A model may have more files than programs may have open by default. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int open_all(char *const *paths, size_t n, struct split_file *files, size_t *ret_n, uint64_t *ret_size)
{
    uint64_t size = 0;
    for (*ret_n = 0; *ret_n < n; (*ret_n)++) {
        struct stat status;
        int fd = open_file(paths[*ret_n]);
        if (fd < 0 || fstat(fd, &status) < 0)
            return fd < 0 ? fd : -errno;
        files[*ret_n] = (struct split_file){fd, (uint64_t)status.st_size};
        size += (uint64_t)status.st_size;
    }
    *ret_size = size;
    return 0;
}

/* *ret_file tells which of the paths could not be read. One file of several, without the others, is looked at alone. */
static int read_paths(char *const *paths, size_t n, struct inspected *ret, struct gguf_fault *fault, size_t *ret_file)
{
    struct split_file *files = need_memory(n * sizeof(*files));
    size_t n_open = 0;
    int r = open_all(paths, n, files, &n_open, &ret->size);
    *ret_file = r < 0 ? n_open : 0;
    if (r == 0)
        r = shard_peek(files[0].fd, &ret->place);
    if (r == 0)
        r = n > 1 ? split_read(files, n, &ret->file, fault, ret_file)
                  : gguf_read(files[0].fd, files[0].size, &ret->file, fault);
    ret->whole = n > 1 || !ret->place.split;
    while (n_open > 0)
        close(files[--n_open].fd);
    free(files);
    return r;
}

/* Reads the headers of the files. Returns false after it said why it cannot. */
static bool read_files(const struct rfctl *ctl, struct inspected *ret)
{
    struct gguf_fault fault = {0};
    struct shard_paths found = {0};
    char *const *paths = ctl->arguments;
    size_t n = ctl->n_arguments, file = 0;
    raise_descriptor_limit();
    if (n == 1 && shards_find(paths[0], true, open_file, &found) == 0 && found.n > 1) {
        paths = found.paths;
        n = found.n;
    }
    int r = read_paths(paths, n, ret, &fault, &file);
    const char *path = file < n ? paths[file] : paths[0];
    if (r == -EBADMSG) {
        err_line("cannot inspect %s: %s, at byte %" PRIu64, path, fault.reason, fault.offset);
        print_invalid(ctl, &fault);
    } else if (r < 0)
        ctl_refuse(ctl, "cannot inspect %s: %s", path,
                   r == -EINVAL    ? "it is no regular file"
                   : r == -ENODATA ? "it was cut short"
                                   : strerror(-r));
    /* Which of them was named, not which comes first. */
    int fd = r == 0 && n > 1 ? open_file(ctl->arguments[0]) : -1;
    if (fd >= 0) {
        (void)shard_peek(fd, &ret->place);
        close(fd);
    }
    shard_paths_free(&found);
    return r == 0;
}

int command_inspect(struct rfctl *ctl)
{
    struct inspected inspected = {0};
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
    gguf_free(inspected.file);
    return STATUS_DONE;
}
