#include "client/files.h"

#include "client/error.h"
#include "proto/model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void files_close(struct files *files)
{
    while (files->n > 0)
        close(files->fds[--files->n]);
}

static int files_add(struct files *files, rf_client *client, const char *path)
{
    /* O_NONBLOCK: opening a named pipe would wait until another process opens its other end. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return client_fail(client, -errno, "cannot open %s: %s", path, strerror(errno));
    files->fds[files->n++] = fd;
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return client_fail(client, -EINVAL, "cannot open %s: it is no regular file", path);
    return 0;
}

int files_open(struct files *files, rf_client *client, const char *path)
{
    unsigned n = shard_count(path);
    for (unsigned i = 0; i < n; i++) {
        char shard[PATH_MAX];
        int r = shard_path(path, i, n, shard, sizeof(shard));
        if (r < 0)
            return client_fail(client, r, "cannot open %s: %s", path, strerror(-r));
        r = files_add(files, client, shard);
        if (r < 0)
            return r;
    }
    return 0;
}

void files_link_name(const char *path, char name[static RF_NAME_SIZE])
{
    _Static_assert(RF_NAME_SIZE == MODEL_NAME_MAX + 1, "room for any name");
    struct stat status;
    name[0] = '\0';
    if (lstat(path, &status) == 0 && S_ISLNK(status.st_mode))
        model_name_derive(path, name);
}
