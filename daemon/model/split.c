#include "daemon/model/split.h"

#include "daemon/gguf/name_set.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refuse(struct gguf_fault *fault, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refuse(struct gguf_fault *fault, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->reason, sizeof(fault->reason), format, arguments);
    va_end(arguments);
    fault->offset = 0;
    return -EBADMSG;
}

/* What a file says of its place: 0 and 1 if it says nothing, which a file of several must not do. */
static int place_of(const struct gguf *model, bool split, uint64_t *ret_number, uint64_t *ret_count,
                    struct gguf_fault *fault)
{
    uint64_t number = 0, count = 1;
    int r = gguf_kv_u64(gguf_find(model, "split.count"), &count);
    if (r == -EINVAL)
        return refuse(fault, "split.count is no number of files");
    r = gguf_kv_u64(gguf_find(model, "split.no"), &number);
    if (r == -EINVAL || (split && r < 0))
        return refuse(fault, "split.no is no number of a file");
    *ret_number = number;
    *ret_count = count > 0 ? count : 1;
    return 0;
}

static int check_place(const struct gguf *model, size_t file, size_t n_files, struct gguf_fault *fault)
{
    uint64_t number = 0, count = 1;
    int r = place_of(model, n_files > 1, &number, &count, fault);
    if (r < 0)
        return r;
    if (n_files == 1 && count > 1)
        return refuse(fault,
                      number == 0 ? "the first of %" PRIu64 " files of a split model: all are needed"
                                  : "a later one of %" PRIu64 " files of a split model: give the first one, or all",
                      count);
    /* Loaders go by the first file's count; writers are not of one mind about the others'. */
    if (file == 0 && count != n_files)
        return refuse(fault, "file %zu says that the model has %" PRIu64 " files, not %zu", file + 1, count, n_files);
    if (number != file)
        return refuse(fault, "file %zu says that it is number %" PRIu64, file + 1, number + 1);
    return 0;
}

/* Refuses a name that stands in two files. */
static int check_names(const struct gguf_tensor *tensors, size_t n, struct gguf_fault *fault)
{
    __attribute__((cleanup(name_set_free))) struct name_set seen = {0};
    int r = name_set_init(&seen, n);
    for (size_t i = 0; i < n && r == 0; i++)
        if (!name_set_add(&seen, tensors[i].name, strlen(tensors[i].name)))
            r = refuse(fault, "tensor '%s' stands in two files", tensors[i].name);
    return r;
}

/* Makes the first part the whole: its tensors become all tensors, and the other parts hang on it. On failure the parts
 * are as they were. */
static int join(struct gguf **parts, size_t n, struct gguf_fault *fault)
{
    size_t n_tensors = 0;
    for (size_t i = 0; i < n; i++)
        n_tensors += parts[i]->n_tensors;
    if (n_tensors > GGUF_TENSORS_MAX)
        return refuse(fault, "more than %u tensors", GGUF_TENSORS_MAX);
    uint64_t told;
    int r = gguf_kv_u64(gguf_find(parts[0], "split.tensors.count"), &told);
    if (r < 0 || told != n_tensors)
        return refuse(fault, "split.tensors.count does not agree with the %zu tensors in the files", n_tensors);

    struct gguf_tensor *tensors = calloc(n_tensors ? n_tensors : 1, sizeof(*tensors));
    if (!tensors)
        return -ENOMEM;
    size_t used = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < parts[i]->n_tensors; j++) {
            tensors[used] = parts[i]->tensors[j];
            tensors[used++].shard = (uint32_t)i;
        }
    r = check_names(tensors, used, fault);
    if (r < 0) {
        free(tensors);
        return r;
    }
    free(parts[0]->tensors);
    parts[0]->tensors = tensors;
    parts[0]->n_tensors = used;
    for (size_t i = 0; i + 1 < n; i++)
        parts[i]->next = parts[i + 1];
    return 0;
}

int split_read(const struct source *source, struct gguf **ret, struct gguf_fault *ret_fault, size_t *ret_file)
{
    struct gguf *parts[SOURCE_FILES_MAX] = {0};
    uint64_t left = GGUF_HEADER_MAX;
    int r = 0;
    size_t n = 0;
    while (n < source->n_files && r == 0) {
        *ret_file = n;
        const struct source_file *file = &source->files[n];
        r = gguf_read_within(file->fd, file->identity.size, left, &parts[n], ret_fault);
        if (r < 0)
            break;
        const uint64_t taken = gguf_memory(parts[n]);
        left -= taken < left ? taken : left;
        r = check_place(parts[n++], *ret_file, source->n_files, ret_fault);
    }
    if (r == 0 && n > 1) {
        *ret_file = 0;
        r = join(parts, n, ret_fault);
    }
    if (r < 0) {
        for (size_t i = 0; i < n; i++)
            gguf_free(parts[i]);
        return r;
    }
    *ret = parts[0];
    return 0;
}
