#include "daemon/gguf/split.h"

#include "daemon/gguf/gguf.h"
#include "daemon/header/join.h"
#include "proto/min.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads a file's number and its count of files. A file without them gives 0 and 1. split: it is one of several files,
 * so it must have a number. */
static int place_of(const struct model_header *model, bool split, uint64_t *ret_number, uint64_t *ret_count,
                    struct header_fault *fault)
{
    uint64_t number = 0, count = 1;
    int r = header_kv_u64(model_header_find(model, "split.count"), &count);
    if (r == -EINVAL)
        return model_header_refuse(fault, "split.count is no number of files");
    r = header_kv_u64(model_header_find(model, "split.no"), &number);
    if (r == -EINVAL || (split && r < 0))
        return model_header_refuse(fault, "split.no is no number of a file");
    *ret_number = number;
    *ret_count = count > 0 ? count : 1;
    return 0;
}

/* Refuses a file that was given alone but belongs to a split model. */
static int check_only(const struct model_header *model, struct header_fault *fault)
{
    uint64_t number = 0, count = 1;
    int r = place_of(model, false, &number, &count, fault);
    if (r < 0 || count == 1)
        return r;
    return model_header_refuse(fault,
                               number == 0 ? "the first of %" PRIu64 " files of a split model: all are needed"
                                           : "a later one of %" PRIu64
                                             " files of a split model: give the first one, or all",
                               count);
}

/* Puts the header into `parts` at the number that it says. `file` is its index among the given files. */
static int take_place(struct model_header *model, size_t file, struct file_header *parts, size_t n,
                      struct header_fault *fault)
{
    uint64_t number = 0, count = 1;
    int r = place_of(model, true, &number, &count, fault);
    if (r < 0)
        return r;
    /* Only the first file's count is checked. Loaders use that one, and writers differ in what they put into the other
     * files. */
    if (number == 0 && count != n)
        return model_header_refuse(fault, "file %zu says that the model has %" PRIu64 " files, not %zu", file + 1,
                                   count, n);
    if (number >= n && number < count)
        return model_header_refuse(
            fault, "file %zu says that it is number %" PRIu64 " of %" PRIu64 ", but %zu files are given", file + 1,
            number + 1, count, n);
    if (number >= n)
        return model_header_refuse(fault, "file %zu says that it is number %" PRIu64 ", but %zu files are given",
                                   file + 1, number + 1, n);
    if (parts[number].model)
        return model_header_refuse(fault, "file %zu says that it is number %" PRIu64 ", as file %zu does", file + 1,
                                   number + 1, parts[number].file + 1);
    parts[number] = (struct file_header){model, file};
    return 0;
}

/* Joins the headers, which are in the order of their numbers. */
static int join(const struct file_header *headers, size_t n, struct header_fault *fault, size_t *ret_file)
{
    uint64_t told, n_tensors = 0;
    for (size_t i = 0; i < n; i++) {
        assert(headers[i].model); /* no two of the n files have the same number */
        n_tensors += headers[i].model->n_tensors;
    }
    int r = header_kv_u64(model_header_find(headers[0].model, "split.tensors.count"), &told);
    if (r < 0 || told != n_tensors)
        return model_header_refuse(
            fault, "split.tensors.count does not agree with the %" PRIu64 " tensors in the files", n_tensors);
    *ret_file = n;
    return headers_join(headers, n, fault);
}

/* Reads the headers of several files, puts them in order, and joins them. */
static int read_parts(const struct header_file *files, size_t n, struct file_header *parts, struct header_fault *fault,
                      size_t *ret_file)
{
    uint64_t left = HEADER_BYTES_MAX;
    for (size_t i = 0; i < n; i++) {
        struct model_header *model = NULL;
        *ret_file = i;
        int r = gguf_read_within(files[i].fd, files[i].size, left, &model, fault);
        if (r < 0)
            return r;
        r = take_place(model, i, parts, n, fault);
        if (r < 0) {
            model_header_free(model);
            return r;
        }
        const uint64_t taken = model_header_memory(model);
        left -= min_u64(taken, left);
    }
    *ret_file = 0;
    return join(parts, n, fault, ret_file);
}

int split_read(const struct header_file *files, size_t n, struct model_header **ret, struct header_fault *ret_fault,
               size_t *ret_file)
{
    if (n == 1) {
        struct model_header *model = NULL;
        *ret_file = 0;
        int r = gguf_read(files[0].fd, files[0].size, &model, ret_fault);
        if (r == 0)
            r = check_only(model, ret_fault);
        if (r < 0)
            model_header_free(model);
        else
            *ret = model;
        return r;
    }
    struct file_header *parts = calloc(n, sizeof(*parts));
    if (!parts)
        return -ENOMEM;
    int r = read_parts(files, n, parts, ret_fault, ret_file);
    for (size_t i = 0; i < n && r < 0; i++)
        model_header_free(parts[i].model);
    if (r == 0)
        *ret = parts[0].model;
    free(parts);
    return r;
}
