#include "client/files.h"

#include "client/error.h"
#include "proto/folder.h"
#include "proto/model_file.h"
#include "proto/shards_given.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int open_failed(rf_client *client, int error, const char *path)
{
    return client_fail(client, error, "cannot open %s: %s", path,
                       error == -EINVAL    ? "it is no regular file"
                       : error == -EBADMSG ? "its " FOLDER_INDEX " is not valid"
                                           : strerror(-error));
}

static int copy_paths(struct shard_paths *shards, const char *const *paths, size_t n)
{
    shards->paths = calloc(n, sizeof(*shards->paths));
    for (; shards->paths && shards->n < n; shards->n++)
        if (!(shards->paths[shards->n] = strdup(paths[shards->n])))
            return -ENOMEM;
    return shards->paths ? 0 : -ENOMEM;
}

/* Writes the files' names; of many only the first. */
static const char *names_of(const struct shard_paths *files, char *text, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < files->n && i < 8 && n < size; i++)
        n += (size_t)snprintf(text + n, size - n, "%s%s", i == 0 ? "" : ", ", files->paths[i]);
    if (files->n > 8 && n < size)
        snprintf(text + n, size - n, ", ...");
    return text;
}

static int ambiguous(rf_client *client, const char *path, const struct shard_paths *same)
{
    char names[1024];
    return client_fail(client, -ENOTUNIQ,
                       "cannot open %s: several files say that they are the same one of its model, and nothing tells "
                       "which one is: name all its files, with one of these: %s",
                       path, names_of(same, names, sizeof(names)));
}

/* With several paths: whether they are all files of their model, as far as that can be told here. */
static int check_given(rf_client *client, const char *const *paths, size_t n)
{
    char names[1024];
    struct shard_paths missing;
    int r = shards_given(paths, n, shard_open_regular, &missing);
    if (r != -ENODATA)
        return r < 0 ? client_fail(client, r, "no memory for the paths") : 0;
    client_fail(client, r,
                "cannot open %s: these files are a part of a model: name all its files, or only one; not named: %s",
                paths[0], names_of(&missing, names, sizeof(names)));
    shard_paths_free(&missing);
    return r;
}

int files_find(struct files *files, rf_client *client, const char *const *paths, size_t n)
{
    if (n == 0 || n > SHARDS_MAX)
        return client_fail(client, -EINVAL, "a model has 1 to %u files, and not %zu", SHARDS_MAX, n);
    struct shard_paths *shards = &files->shards;
    int r = n == 1 ? 0 : check_given(client, paths, n);
    if (r < 0)
        return r;
    r = n == 1 ? shards_find(paths[0], false, shard_open_regular, shards) : copy_paths(shards, paths, n);
    if (r == -ENOTUNIQ)
        return ambiguous(client, paths[0], shards);
    if (r == -E2BIG)
        return client_fail(client, r, "cannot open %s: its model has more than %u files", paths[0], SHARDS_MAX);
    if (r == -ENOENT && shards->n > 0 && shards->paths[0])
        return open_failed(client, r, shards->paths[0]);
    if (r == -ENOENT && access(paths[0], F_OK) == 0)
        return client_fail(client, r, "cannot open %s: the other files of its model are not there", paths[0]);
    return r < 0 ? open_failed(client, r, paths[0]) : 0;
}

int rf_model_files(const char *path, rf_file_fn *file, void *context)
{
    struct shard_paths found;
    const int r = shards_find(path, false, shard_open_regular, &found);
    for (size_t i = 0; i < found.n; i++)
        if (found.paths[i])
            file(context, found.paths[i]);
    shard_paths_free(&found);
    return r;
}

static void close_open(struct files *files)
{
    while (files->n > 0)
        close(files->fds[--files->n]);
}

int files_open(struct files *files, rf_client *client)
{
    const struct shard_paths *shards = &files->shards;
    close_open(files);
    for (; files->n < FRAME_FDS_MAX && files->next < shards->n; files->next++) {
        int fd = shard_open_regular(shards->paths[files->next]);
        if (fd < 0)
            return open_failed(client, fd, shards->paths[files->next]);
        files->fds[files->n++] = fd;
    }
    return files->next < shards->n;
}

void files_close(struct files *files)
{
    close_open(files);
    shard_paths_free(&files->shards);
}

void files_link_name(const char *path, char name[static RF_NAME_SIZE])
{
    _Static_assert(RF_NAME_SIZE == MODEL_NAME_MAX + 1, "room for any name");
    if (!model_name_of_link(path, name))
        name[0] = '\0';
}
