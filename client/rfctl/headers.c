#include "client/rfctl/headers.h"

#include "client/rfctl/memory.h"
#include "daemon/format/format.h"
#include "daemon/gguf/gguf.h"
#include "proto/descriptors.h"
#include "proto/shards_given.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_all(char *const *paths, size_t n, struct header_file *files, size_t *ret_n, uint64_t *ret_size)
{
    uint64_t size = 0;
    for (*ret_n = 0; *ret_n < n; (*ret_n)++) {
        struct stat status;
        int fd = shard_open_regular(paths[*ret_n]);
        if (fd < 0 || fstat(fd, &status) < 0)
            return fd < 0 ? fd : -errno;
        files[*ret_n] = (struct header_file){fd, (uint64_t)status.st_size};
        size += (uint64_t)status.st_size;
    }
    *ret_size = size;
    return 0;
}

/* *ret_file tells which of the paths could not be read; n: all together. One file of several, without the others, is
 * looked at alone: all other files have to be whole models, as for a load. */
static int read_paths(char *const *paths, size_t n, struct headers *ret, struct header_fault *fault, size_t *ret_file)
{
    struct header_file *files = need_memory(n * sizeof(*files));
    size_t n_open = 0;
    int r = open_all(paths, n, files, &n_open, &ret->size);
    *ret_file = r < 0 ? n_open : 0;
    if (r == 0)
        r = shard_peek(files[0].fd, &ret->place);
    if (r == 0)
        r = n == 1 && ret->place.gguf && ret->place.split && ret->place.count > 1
                ? gguf_read(files[0].fd, files[0].size, &ret->file, fault)
                : format_read(files, n, &ret->file, fault, ret_file);
    ret->whole = n > 1 || !ret->place.split;
    while (n_open > 0)
        close(files[--n_open].fd);
    free(files);
    return r;
}

/* Refuses files that are a part of a model, which safetensors files do not say themselves. */
static int check_given(char *const *paths, size_t n, struct header_fault *fault, char **ret_path)
{
    struct shard_paths missing;
    int r = shards_given((const char *const *)paths, n, shard_open_regular, &missing);
    if (r == 0)
        return 0;
    *ret_path = need_text("%s", paths[0]);
    if (r != -ENODATA)
        return r;
    snprintf(fault->reason, sizeof(fault->reason), "its model has files that are not named, as %.100s",
             strrchr(missing.paths[0], '/') ? strrchr(missing.paths[0], '/') + 1 : missing.paths[0]);
    shard_paths_free(&missing);
    return -EBADMSG;
}

int headers_read(char *const *paths, size_t n, struct headers *ret, struct header_fault *ret_fault, char **ret_path)
{
    struct headers headers = {0};
    struct shard_paths found = {0};
    const char *first = paths[0];
    size_t file = 0;
    (void)descriptors_raise_limit(); /* a model may have more files than programs may have open by default */
    int r = n == 1 ? 0 : check_given(paths, n, ret_fault, ret_path);
    if (r < 0)
        return r;
    r = n == 1 ? shards_find(first, true, shard_open_regular, &found) : -ENOENT;
    if (r == -EBADMSG) {
        snprintf(ret_fault->reason, sizeof(ret_fault->reason), "its index of files is not valid");
        *ret_path = need_text("%s", first);
        return r;
    }
    const size_t number = found.number, count = found.count;
    if (r == -ENOTUNIQ || r == -ENOENT) {
        *(r == -ENOENT ? &headers.absent : &headers.same) = found;
        found = (struct shard_paths){0};
    }
    if (r == 0) {
        paths = found.paths;
        n = found.n;
    }
    r = read_paths(paths, n, &headers, ret_fault, &file);
    /* Which of them was named, not which comes first. */
    int fd = r == 0 && n > 1 ? shard_open_regular(first) : -1;
    if (fd >= 0) {
        (void)shard_peek(fd, &headers.place);
        close(fd);
    }
    if (r == 0 && !headers.place.gguf && count > 1) { /* the file itself does not say it */
        headers.place.split = true;
        headers.place.number = number - 1;
        headers.place.count = count;
        headers.whole = n > 1;
    }
    if (r == 0)
        *ret = headers;
    else {
        *ret_path = need_text("%s", file < n ? paths[file] : first);
        headers_clear(&headers);
    }
    shard_paths_free(&found);
    return r;
}

void headers_clear(struct headers *headers)
{
    model_header_free(headers->file);
    shard_paths_free(&headers->same);
    shard_paths_free(&headers->absent);
    *headers = (struct headers){0};
}
