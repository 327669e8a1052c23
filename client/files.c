#include "client/files.h"

#include "client/error.h"
#include "proto/folder.h"
#include "proto/model_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

int files_find(struct files *files, rf_client *client, const char *const *paths, size_t n)
{
    if (n == 0 || n > SHARDS_MAX)
        return client_fail(client, -EINVAL, "a model has 1 to %u files, and not %zu", SHARDS_MAX, n);
    struct shard_paths *shards = &files->shards;
    int r = n == 1 ? shards_find(paths[0], false, shard_open_regular, shards) : copy_paths(shards, paths, n);
    if (r == -ENOTUNIQ)
        return client_fail(
            client, r, "cannot open %s: several files beside it say that they are the same one of its model", paths[0]);
    if (r == -E2BIG)
        return client_fail(client, r, "cannot open %s: its model has more than %u files", paths[0], SHARDS_MAX);
    if (r == -ENOENT && shards->n > 0 && shards->paths[0])
        return open_failed(client, r, shards->paths[0]);
    if (r == -ENOENT && access(paths[0], F_OK) == 0)
        return client_fail(client, r, "cannot open %s: the other files of its model are not there", paths[0]);
    return r < 0 ? open_failed(client, r, paths[0]) : 0;
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

/* After the folder's own name, which "." and "..", for instance, do not tell. */
static void folder_name(const char *path, char name[static RF_NAME_SIZE])
{
    char *real = realpath(path, NULL), *file = NULL;
    if (real && asprintf(&file, "%s/" FOLDER_FILE, real) >= 0) {
        model_name_derive(file, name);
        free(file);
    }
    free(real);
}

void files_link_name(const char *path, char name[static RF_NAME_SIZE])
{
    _Static_assert(RF_NAME_SIZE == MODEL_NAME_MAX + 1, "room for any name");
    struct stat status;
    name[0] = '\0';
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode))
        folder_name(path, name);
    else if (lstat(path, &status) == 0 && S_ISLNK(status.st_mode))
        model_name_derive(path, name);
}
