#include "client/config.h"

#include "proto/model_config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Reads a whole file, which the caller frees. */
static int read_small(const char *path, char **ret, size_t *ret_size)
{
    struct stat status;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    int r = fstat(fd, &status) < 0 ? -errno : 0;
    if (r == 0 && (!S_ISREG(status.st_mode) || (size_t)status.st_size > MODEL_CONFIG_MAX))
        r = -EFBIG;
    char *text = r == 0 ? malloc((size_t)status.st_size + 1) : NULL;
    if (r == 0 && !text)
        r = -ENOMEM;
    if (r == 0 && pread(fd, text, (size_t)status.st_size, 0) != (ssize_t)status.st_size)
        r = -EIO;
    close(fd);
    if (r < 0) {
        free(text);
        return r;
    }
    *ret = text;
    *ret_size = (size_t)status.st_size;
    return 0;
}

int config_heads(const char *path, uint32_t *ret_heads, uint32_t *ret_kv_heads)
{
    struct stat status;
    char name[PATH_MAX], *text = NULL;
    const char *slash = strrchr(path, '/');
    const int folder = stat(path, &status) == 0 && S_ISDIR(status.st_mode) ? (int)strlen(path)
                       : slash                                             ? (int)(slash - path)
                                                                           : 0;
    const bool here = folder == 0 && !slash;
    if (snprintf(name, sizeof(name), "%.*s%s" MODEL_CONFIG_NAME, folder, path, here ? "" : "/") >= (int)sizeof(name))
        return -ENAMETOOLONG;
    size_t size = 0;
    uint64_t heads, kv_heads;
    int r = read_small(name, &text, &size);
    if (r < 0)
        return r;
    r = model_config_heads(text, size, UINT32_MAX, &heads, &kv_heads);
    free(text);
    if (r < 0)
        return r;
    *ret_heads = (uint32_t)heads;
    *ret_kv_heads = (uint32_t)kv_heads;
    return 0;
}
